// The link of a process to the supervisor, with a thread in the supervisor's place.
#include "core/supervisor_link.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"

using namespace skate;

namespace {

struct Pair {
  int process, supervisor;
  Pair() {
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
    process = fds[0];
    supervisor = fds[1];
  }
};

std::string contents_of(int fd) {
  struct stat status;
  CHECK(fstat(fd, &status) == 0);
  std::string bytes(static_cast<std::size_t>(status.st_size), '\0');
  CHECK(pread(fd, bytes.data(), bytes.size(), 0) == status.st_size);
  close(fd);
  return bytes;
}

// One packet as the supervisor reads it: the descriptor of a boxed one is read. Empty
// when the process has gone.
std::string read_packet(int sock) {
  std::string bytes(1 << 20, '\0');
  iovec part{bytes.data(), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t n = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
  if (n <= 0) return {};
  bytes.resize(static_cast<std::size_t>(n));
  if (bytes != "G") return bytes;
  cmsghdr* c = CMSG_FIRSTHDR(&message);
  CHECK(c != nullptr);
  int fd;
  std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
  return contents_of(fd);
}

void send_packet(int sock, const std::string& bytes, std::vector<int> fds = {}) {
  std::string data = bytes;
  int box = -1;
  if (bytes.size() > SupervisorLink::kMaxInline || bytes[0] == 'G') {
    box = memfd_create("box", 0);
    CHECK(write(box, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    fds.insert(fds.begin(), box);
    data = "G";
  }
  iovec part{data.data(), data.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(c), fds.data(), fds.size() * sizeof(int));
  }
  CHECK(sendmsg(sock, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(data.size()));
  if (box >= 0) close(box);
}

int memfd_of(const std::string& bytes) {
  const int fd = memfd_create("test", MFD_CLOEXEC);
  CHECK(write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  return fd;
}

std::string answer_of(char kind, i32 error) {
  std::string answer(1, kind);
  answer.append(reinterpret_cast<const char*>(&error), sizeof error);
  return answer;
}

// While it lives this process can open no further file.
class NoDescriptors {
 public:
  NoDescriptors() {
    getrlimit(RLIMIT_NOFILE, &before_);
    const int next = dup(0);
    CHECK(next >= 0);
    close(next);
    const rlimit now{static_cast<rlim_t>(next), before_.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &now) == 0);
  }
  ~NoDescriptors() { setrlimit(RLIMIT_NOFILE, &before_); }

 private:
  rlimit before_;
};

const std::size_t kSizes[] = {0,      1,       65'534,    65'535,   65'536,
                              65'537, 212'992, 1'000'000, 5'000'000};

}  // namespace

TEST(questions_and_answers_of_any_size_arrive_whole) {
  Pair pair;
  SupervisorLink link(pair.process);
  std::thread supervisor([&] {
    for (std::string packet; !(packet = read_packet(pair.supervisor)).empty();) {
      CHECK(packet[0] == 'A');
      send_packet(pair.supervisor, "=" + packet.substr(1));
    }
  });
  for (const std::size_t size : kSizes) {
    const std::string question(size, 'G');
    std::string answer;
    CHECK(link.ask(question, answer));
    CHECK(answer == "=" + question);
  }
  link.close();
  supervisor.join();
  close(pair.supervisor);
}

TEST(an_answer_that_begins_as_a_boxed_one_is_not_taken_for_one) {
  Pair pair;
  SupervisorLink link(pair.process);
  send_packet(pair.supervisor, "G");  // boxed, since it looks so
  std::string answer;
  CHECK(link.ask("?", answer));
  CHECK(answer == "G");
  close(pair.supervisor);
}

TEST(notes_do_not_wait_and_arrive_in_order_before_a_later_question) {
  Pair pair;
  SupervisorLink link(pair.process);
  constexpr int kNotes = 3'000;  // many more than the socket has room for
  for (int i = 0; i < kNotes; ++i) {
    const std::size_t size = i % 100 == 0 ? 100'000 : 1'000;
    std::string note(size, 'x');
    std::memcpy(note.data(), &i, sizeof i);
    CHECK(link.tell(Note::kTell, note));
  }
  CHECK(link.flush());  // nobody reads: something is left
  std::thread supervisor([&] {
    for (int i = 0; i < kNotes; ++i) {
      const std::string packet = read_packet(pair.supervisor);
      CHECK(packet.size() == (i % 100 == 0 ? 100'001U : 1'001U));
      int number;
      std::memcpy(&number, packet.data() + 1, sizeof number);
      CHECK(number == i);
    }
    CHECK(read_packet(pair.supervisor) == "A?");
    send_packet(pair.supervisor, "!");
  });
  std::string answer;
  CHECK(link.ask("?", answer));
  CHECK(answer == "!");
  CHECK(!link.flush());
  supervisor.join();
  close(pair.supervisor);
}

TEST(kept_notes_go_out_with_flush_alone) {
  Pair pair;
  SupervisorLink link(pair.process);
  int kept = 0;
  link.on_kept([&] { ++kept; });
  int told = 0;
  for (; !link.flush(); ++told) {
    CHECK(kept == 0);
    CHECK(link.tell(Note::kTell, std::string(1'000, 'x')));
  }
  CHECK(kept == 1);
  std::thread supervisor([&] {
    for (int i = 0; i < told; ++i) CHECK(read_packet(pair.supervisor).size() == 1'001);
  });
  while (link.flush()) std::this_thread::yield();
  supervisor.join();
  close(pair.supervisor);
}

TEST(a_note_does_not_wait_for_a_question_of_another_thread) {
  Pair pair;
  SupervisorLink link(pair.process);
  std::thread asks([&] {
    std::string answer;
    CHECK(link.ask("?", answer));
    CHECK(answer == "!");
  });
  CHECK(read_packet(pair.supervisor) == "A?");  // it waits for the answer now
  CHECK(link.tell(Note::kBlocked));
  CHECK(read_packet(pair.supervisor) == "B");
  send_packet(pair.supervisor, "!");
  asks.join();
  close(pair.supervisor);
}

TEST(many_threads_ask_and_tell_and_each_gets_its_own_answer) {
  Pair pair;
  SupervisorLink link(pair.process);
  constexpr int kThreads = 4;
  const int kEach = 200 * check::kLoad;
  std::atomic<int> told = 0;
  std::thread supervisor([&] {
    for (std::string packet; !(packet = read_packet(pair.supervisor)).empty();) {
      if (packet[0] == 'A')
        send_packet(pair.supervisor, packet.substr(1));
      else
        ++told;
    }
  });
  check::in_threads(kThreads, [&](int thread) {
    for (int i = 0; i < kEach; ++i) {
      const std::string question = std::to_string(thread) + " " + std::to_string(i);
      std::string answer;
      CHECK(link.tell(Note::kTell, question));
      CHECK(link.ask(question, answer));
      CHECK(answer == question);
    }
  });
  link.close();
  supervisor.join();
  CHECK(told == kThreads * kEach);
  close(pair.supervisor);
}

TEST(a_segment_is_gone_or_cannot_be_opened_now) {
  Pair pair;
  SupervisorLink link(pair.process);
  const ProcId proc{7, 70'000};
  std::string asked = "M";
  asked.append(reinterpret_cast<const char*>(&proc), sizeof proc);
  CHECK(asked.size() == 9);

  const int memory = memfd_of("its memory");
  send_packet(pair.supervisor, answer_of('M', 0), {memory});
  const int fd = link.fetch_segment(proc);
  CHECK(fd >= 0);
  CHECK(contents_of(fd) == "its memory");
  CHECK(read_packet(pair.supervisor) == asked);

  send_packet(pair.supervisor, answer_of('M', ENOENT));
  CHECK(link.fetch_segment(proc) == -1 && errno == ENOENT);

  send_packet(pair.supervisor, answer_of('S', EMFILE));  // the supervisor has none
  CHECK(link.fetch_spill_file(proc) == -1 && errno == EMFILE);

  send_packet(pair.supervisor, answer_of('M', 0), {memory});
  {
    const NoDescriptors none;
    timespec begin, end;  // whoever asks may hold a lock
    clock_gettime(CLOCK_MONOTONIC, &begin);
    CHECK(link.fetch_segment(proc) == -1 && errno == EMFILE);
    clock_gettime(CLOCK_MONOTONIC, &end);
    CHECK((end.tv_sec - begin.tv_sec) * 1000 +
              (end.tv_nsec - begin.tv_nsec) / 1'000'000 <
          300);  // and not half a second
  }
  send_packet(pair.supervisor, answer_of('M', 0), {memory});  // and the next is heard
  const int later = link.fetch_segment(proc);
  CHECK(later >= 0);
  close(later);
  close(memory);
  close(pair.supervisor);
}

// Who asks with a lock held pays for its silence once, also when there is no room for
// the question.
TEST(a_supervisor_that_reads_nothing_is_waited_for_once) {
  Pair pair;
  SupervisorLink link(pair.process);
  u64 notes = 0;
  for (; !link.has_kept(); ++notes)
    CHECK(link.tell(Note::kTell, std::string(1000, 'x')));
  const ProcId proc{7, 1};
  const i64 start = now_ns();
  CHECK(link.fetch_segment(proc) == -1 && errno == ETIMEDOUT);
  const i64 known = now_ns();
  for (int i = 0; i < 3; ++i)
    CHECK(link.fetch_segment(proc) == -1 && errno == ETIMEDOUT);
  CHECK(now_ns() - known < known - start);
  // It reads again.
  const int memory = memfd_of("its memory");
  std::thread supervisor([&] {
    for (std::string packet; !(packet = read_packet(pair.supervisor)).empty();) {
      if (packet[0] == 'M') send_packet(pair.supervisor, answer_of('M', 0), {memory});
      if (packet[0] == 'T') --notes;
    }
  });
  int fd;
  while ((fd = link.fetch_segment(proc)) < 0) CHECK(errno == ETIMEDOUT);
  close(fd);
  link.close();
  supervisor.join();
  CHECK(notes == 0);
  close(memory);
  close(pair.supervisor);
}

TEST(without_descriptors_a_long_note_is_kept_and_a_long_question_refused) {
  Pair pair;
  SupervisorLink link(pair.process);
  const std::string text(100'000, 'x');
  {
    const NoDescriptors none;
    CHECK(link.tell(Note::kTell, text));
    CHECK(link.flush());
    std::string answer;
    CHECK(!link.ask(text, answer) && errno == EMFILE);
  }
  CHECK(!link.flush());
  CHECK(read_packet(pair.supervisor) == "T" + text);
  close(pair.supervisor);
}

TEST(a_long_answer_that_cannot_be_opened_is_not_taken_for_the_next) {
  Pair pair;
  SupervisorLink link(pair.process);
  send_packet(pair.supervisor, std::string(100'000, 'x'));
  std::string answer;
  {
    const NoDescriptors none;
    CHECK(!link.ask("1", answer) && errno == EMFILE);
  }
  send_packet(pair.supervisor, "second");
  CHECK(link.ask("2", answer));
  CHECK(answer == "second");
  close(pair.supervisor);
}

TEST(a_supervisor_that_ends_is_noticed) {
  Pair pair;
  SupervisorLink link(pair.process);
  CHECK(!link.broken());
  CHECK(link.tell(Note::kBlocked));
  close(pair.supervisor);  // with our note unread
  CHECK(link.broken());
  CHECK(!link.tell(Note::kRunning));
  std::string answer;
  CHECK(!link.ask("?", answer) && errno == EPIPE);
  CHECK(link.fetch_segment({2, 1}) == -1 && errno == EPIPE);
}

TEST(an_answer_given_before_the_end_is_heard) {
  Pair pair;
  SupervisorLink link(pair.process);
  std::thread supervisor([&] {
    CHECK(read_packet(pair.supervisor) == "A?");
    CHECK(link.tell(Note::kTell, "unread"));
    send_packet(pair.supervisor, "ok");
    close(pair.supervisor);
  });
  std::string answer;
  CHECK(link.ask("?", answer));
  CHECK(answer == "ok");
  supervisor.join();
}

TEST(closing_ends_a_question_of_another_thread_and_says_what_is_kept) {
  Pair pair;
  SupervisorLink link(pair.process);
  std::thread asks([&] {
    std::string answer;
    CHECK(!link.ask("?", answer));
  });
  CHECK(read_packet(pair.supervisor) == "A?");
  int told = 0;
  for (; !link.flush(); ++told) link.tell(Note::kTell, std::string(1'000, 'x'));
  std::thread supervisor([&] {
    for (int i = 0; i < told; ++i) CHECK(read_packet(pair.supervisor).size() == 1'001);
  });
  link.close();
  supervisor.join();
  asks.join();
  CHECK(!link.tell(Note::kBlocked));
  CHECK(!link.flush());
  close(pair.supervisor);
}

TEST(who_asks_may_give_up_and_the_late_answer_is_dropped) {
  Pair pair;
  SupervisorLink link(pair.process);
  std::string answer;
  CHECK(!link.ask("1", answer, nullptr, [] { return false; }) && errno == EINTR);
  CHECK(read_packet(pair.supervisor) == "A1");
  const int memory = memfd_of("late");
  send_packet(pair.supervisor, "first", {memory});
  send_packet(pair.supervisor, "second");
  int fd = 7;
  CHECK(link.ask("2", answer, &fd));
  CHECK(answer == "second" && fd == -1);
  close(memory);
  close(pair.supervisor);
}

TEST(while_a_question_waits_its_thread_may_ask_another) {
  Pair pair;
  SupervisorLink link(pair.process);
  std::thread supervisor([&] {
    CHECK(read_packet(pair.supervisor) == "A1");
    const std::string note = read_packet(pair.supervisor);
    CHECK(note == "Tsend");
    send_packet(pair.supervisor, "first");
    CHECK(read_packet(pair.supervisor) == "A2");
    send_packet(pair.supervisor, "second");
  });
  int asked = 0;
  std::string answer;
  CHECK(link.ask("1", answer, nullptr, [&] {
    if (++asked > 1) return true;
    std::string other;
    CHECK(link.tell(Note::kTell, "send"));
    CHECK(link.ask("2", other));
    CHECK(other == "second");
    return true;
  }));
  CHECK(answer == "first");
  CHECK(asked == 1);
  supervisor.join();
  close(pair.supervisor);
}

TEST(a_thread_whose_turn_does_not_come_may_give_up) {
  Pair pair;
  SupervisorLink link(pair.process);
  std::thread asks([&] {
    std::string answer;
    CHECK(link.ask("1", answer));
    CHECK(answer == "first");
  });
  CHECK(read_packet(pair.supervisor) == "A1");
  std::string answer;
  CHECK(!link.ask("2", answer, nullptr, [] { return false; }) && errno == EINTR);
  send_packet(pair.supervisor, "first");
  asks.join();
  close(pair.supervisor);
}

TEST(a_thread_without_patience_leaves_an_answer_whole_for_who_waits_for_it) {
  Pair pair;
  SupervisorLink link(pair.process);
  const int memory = memfd_of("its memory");
  const ProcId proc{7, 1};
  std::string answer;
  int fd = -1;
  bool asked = false;
  CHECK(link.ask("1", answer, &fd, [&] {
    if (std::exchange(asked, true)) return true;
    send_packet(pair.supervisor, "first", {memory});
    const NoDescriptors none;  // for a moment
    CHECK(link.fetch_segment(proc) == -1 && errno == EMFILE);
    return true;
  }));
  CHECK(answer == "first" && fd >= 0);
  CHECK(contents_of(fd) == "its memory");
  // Nobody waits for this one, so nobody is kept by it.
  CHECK(!link.ask("2", answer, nullptr, [] { return false; }) && errno == EINTR);
  send_packet(pair.supervisor, "second", {memory});
  send_packet(pair.supervisor, answer_of('M', ENOENT));
  {
    const NoDescriptors none;
    CHECK(link.fetch_segment(proc) == -1 && errno == ENOENT);
  }
  close(memory);
  close(pair.supervisor);
}

// Its turn does not depend on the moment at which it happens to try.
TEST(who_may_give_up_waits_no_longer_than_others_that_ask_without_a_pause) {
  Pair pair;
  SupervisorLink link(pair.process);
  std::thread supervisor([&] {
    for (std::string packet; !(packet = read_packet(pair.supervisor)).empty();)
      send_packet(pair.supervisor, packet);
  });
  constexpr int kOthers = 3;
  std::atomic<bool> stop = false;
  std::atomic<u64> answered = 0;
  std::vector<std::thread> others;
  for (int i = 0; i < kOthers; ++i)
    others.emplace_back([&] {
      for (std::string answer; !stop; ++answered) CHECK(link.ask("other", answer));
    });
  while (answered < 100) std::this_thread::yield();
  std::vector<u64> before;  // answers of others while it waited
  for (int i = 0; i < 101; ++i) {
    for (const u64 now = answered; answered == now;) std::this_thread::yield();
    const u64 start = answered;
    std::string answer;
    CHECK(link.ask("mine", answer, nullptr, [] { return true; }));
    before.push_back(answered - start);
  }
  stop = true;
  for (std::thread& other : others) other.join();
  std::sort(before.begin(), before.end());
  CHECK(before[before.size() / 2] <= 2 * kOthers);
  link.close();
  supervisor.join();
  close(pair.supervisor);
}

TEST(who_does_not_wait_just_now_and_who_has_left_hold_nobody_back) {
  Turns turns;
  Turn first(turns), second(turns), third(turns), gone(turns);
  first.wait();
  CHECK(!second.wait_for(0) && !gone.wait_for(0) && !third.wait_for(0));
  gone.leave();
  first.leave();
  CHECK(third.wait_for(0));  // nobody else waits just now
  CHECK(!first.wait_for(0) && !second.wait_for(0));
  third.leave();
  CHECK(first.wait_for(0) && !second.wait_for(0));
  first.leave();
  second.wait();
}

TEST(in_a_child_that_is_forked_while_it_waits_for_its_turn_nothing_is_waited_for) {
  if (!check::kCanFork) return;
  Pair pair;
  SupervisorLink link(pair.process);
  std::thread asks([&] {
    std::string answer;
    CHECK(link.ask("1", answer));
  });
  CHECK(read_packet(pair.supervisor) == "A1");
  std::string answer;
  pid_t child = -1;
  const bool got = link.ask("2", answer, nullptr, [&] {
    if (child < 0) child = fork();
    if (child != 0) send_packet(pair.supervisor, "one");
    return child != 0;
  });
  if (child == 0) _exit(got ? 1 : 0);
  CHECK(check::reap(child));
  CHECK(read_packet(pair.supervisor) == "A2");
  asks.join();
  CHECK(got);
  close(pair.supervisor);
}

TEST(in_a_forked_child_it_does_nothing) {
  if (!check::kCanFork) return;
  Pair pair;
  SupervisorLink link(pair.process);
  const pid_t child = check::spawn([&] {
    std::string answer;
    CHECK(!link.tell(Note::kTell, "from the child"));
    CHECK(!link.ask("?", answer));
    CHECK(link.fetch_segment({2, 1}) == -1);
    CHECK(!link.flush());
    CHECK(!link.broken());
    link.close();
  });
  CHECK(check::reap(child));
  CHECK(link.tell(Note::kTell, "mine"));
  CHECK(read_packet(pair.supervisor) == "Tmine");
  char byte;
  CHECK(recv(pair.supervisor, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
  close(pair.supervisor);
}

TEST_MAIN()
