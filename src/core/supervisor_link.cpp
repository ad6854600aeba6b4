#include "supervisor_link.hpp"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <utility>

namespace skate {

namespace {

constexpr int kLookAgainMs = 100;  // a poll that missed something costs at most this
constexpr i64 kLookAgainNs = kLookAgainMs * 1'000'000LL;
constexpr int kLastWordsMs = 1000;
constexpr i64 kAnswerNs = 1'000'000'000;  // far longer than one takes
constexpr i64 kTurnNs = 1'000'000;
constexpr int kTries = 50;
constexpr i64 kPauseNs = 10'000'000;
constexpr int kMaxFds = 8;

// How often to try where something is short that another thread may give back.
int tries_of(SupervisorLink::Patience patience) {
  return patience == SupervisorLink::Patience::kNone ? 1 : kTries;
}

void pause_for(i64 nanoseconds) {
  const timespec time{0, nanoseconds};
  nanosleep(&time, nullptr);
}

// No descriptors or memory for now, which says nothing about the other side.
bool is_short(int error) {
  return error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOSPC ||
         error == ENOBUFS || error == ETOOMANYREFS;
}

// A memfd of the packet, or -1 and errno.
int make_box(std::string_view bytes) {
  const int box = memfd_create("skate-packet", MFD_CLOEXEC);
  if (box < 0) return -1;
  while (!bytes.empty()) {
    const ssize_t n = write(box, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = n < 0 ? errno : ENOSPC;
      ::close(box);
      errno = error;
      return -1;
    }
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return box;
}

bool read_box(int box, std::string& bytes) {
  struct stat status;
  if (fstat(box, &status) != 0) return false;
  bytes.resize(static_cast<std::size_t>(status.st_size));
  std::size_t at = 0;
  while (at < bytes.size()) {
    const ssize_t n =
        pread(box, bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += static_cast<std::size_t>(n);
  }
  return true;
}

bool must_be_boxed(std::string_view bytes) {
  return bytes.size() > SupervisorLink::kMaxInline ||
         (!bytes.empty() && bytes[0] == SupervisorLink::kBoxed);
}

struct Descriptors {
  int fds[kMaxFds];
  std::size_t count = 0;

  void add_from(msghdr& message) {
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < n && count < kMaxFds; ++i)
        std::memcpy(&fds[count++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
    }
  }
  int take_first() {
    if (count == 0) return -1;
    const int first = fds[0];
    std::memmove(fds, fds + 1, --count * sizeof(int));
    return first;
  }
  void close_all() {
    for (std::size_t i = 0; i < count; ++i) ::close(fds[i]);
    count = 0;
  }
};

}  // namespace

SupervisorLink::SupervisorLink(int fd) : pid_(getpid()), fd_(fd) {}

SupervisorLink::~SupervisorLink() { close(); }

// Asked before any lock is taken: at the fork another thread may have held it.
bool SupervisorLink::is_own() const { return getpid() == pid_; }

void SupervisorLink::close() {
  if (!is_own()) return;
  {
    std::lock_guard out(out_mu_);
    if (fd_ < 0) return;
    for (int waited = 0; is_left(send_kept()) && waited < kLastWordsMs;
         waited += kLookAgainMs)
      wait_for_room(kLookAgainMs);
    // Ends the turn of whoever waits for an answer.
    shutdown(fd_, SHUT_RDWR);
  }
  Turn turn(turns_);
  turn.wait();
  std::lock_guard out(out_mu_);
  drop_kept();
  const int fd = fd_.exchange(-1);
  if (fd >= 0) ::close(fd);
}

void SupervisorLink::drop_kept() {
  for (const Packet& packet : kept_)
    if (packet.box >= 0) ::close(packet.box);
  kept_.clear();
  num_kept_ = 0;
}

// An errno; 0: sent.
int SupervisorLink::send_packet(Packet& packet) {
  const bool boxed = must_be_boxed(packet.bytes);
  if (boxed && packet.box < 0) {
    packet.box = make_box(packet.bytes);
    if (packet.box < 0) return errno;
  }
  char mark = kBoxed;
  iovec part =
      boxed ? iovec{&mark, 1} : iovec{packet.bytes.data(), packet.bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (boxed) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(c), &packet.box, sizeof(int));
  }
  for (;;) {
    if (sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) break;
    if (errno != EINTR) return errno;
  }
  if (packet.box >= 0) ::close(packet.box);
  packet.box = -1;
  return 0;
}

SupervisorLink::Sent SupervisorLink::send_kept() {
  while (!kept_.empty()) {
    const int error = send_packet(kept_.front());
    if (error == EAGAIN) return Sent::kNoRoom;
    if (is_short(error)) {
      errno = error;
      return Sent::kShort;
    }
    if (error != 0) {
      drop_kept();
      return Sent::kGone;
    }
    kept_.pop_front();
    num_kept_ = kept_.size();
  }
  return Sent::kAll;
}

bool SupervisorLink::tell(Note note, std::string_view payload) {
  if (!is_own()) return false;
  std::unique_lock out(out_mu_);
  if (fd_ < 0) return false;
  Packet packet;
  packet.bytes.reserve(payload.size() + 1);
  packet.bytes.push_back(static_cast<char>(note));
  packet.bytes.append(payload);
  kept_.push_back(std::move(packet));
  num_kept_ = kept_.size();
  const Sent sent = send_kept();
  out.unlock();
  if (is_left(sent) && on_kept_) on_kept_();
  return sent != Sent::kGone;
}

bool SupervisorLink::flush() {
  if (!is_own()) return false;
  std::lock_guard out(out_mu_);
  return fd_ >= 0 && is_left(send_kept());
}

bool SupervisorLink::wait_for_room(int timeout_ms) {
  pollfd p{fd_, POLLOUT, 0};
  const int ready = poll(&p, 1, timeout_ms);
  // There is room, and something else is short: its end rings no bell.
  if (ready > 0 && (p.revents & POLLOUT) != 0) pause_for(kPauseNs);
  return ready <= 0 || (p.revents & (POLLHUP | POLLERR)) == 0;
}

// Whether there is one, or the end of all, before the time is up.
bool SupervisorLink::answer_comes(i64 within_ns) {
  const i64 deadline = now_ns() + within_ns;
  for (;;) {
    if (fd_ < 0) return true;
    pollfd p{fd_, POLLIN, 0};
    const i64 left = deadline - now_ns();
    const int ready = poll(&p, 1, static_cast<int>(std::max<i64>(left, 0) / 1'000'000));
    if (ready > 0 || (ready < 0 && errno != EINTR)) return true;
    if (left <= 0) return false;
  }
}

// False: none has come for so long that the supervisor must have been stopped. Until it
// says something again, it is not waited for.
bool SupervisorLink::wait_for_answer() {
  if (answer_comes(is_silent_ ? 0 : kAnswerNs)) return true;
  is_silent_ = true;
  return false;
}

SupervisorLink::Answer::Answer(Patience of_asker)
    : patience(of_asker), bytes(kMaxInline, '\0') {}

SupervisorLink::Answer::~Answer() {
  if (descriptor >= 0) ::close(descriptor);
}

// Brings the next answer to whoever asked. False, and errno: it is still there, or the
// supervisor has ended. Looks at the packet before it takes it: if this process can
// open no more files now, the kernel would drop those that come with it. How often it
// looks again is for who asked to say; `own`, of who takes it, says whether to wait.
bool SupervisorLink::take_answer(const Answer& own) {
  const Patience patience = own.patience;
  const int most_tries = tries_of(patience);
  // Nobody else can begin to wait for it: that takes the turn.
  const bool is_awaited = asked_.front().use_count() > 1;
  const std::shared_ptr<Answer> answer = asked_.front();
  Descriptors found;
  bool was_reset = false;
  if (patience == Patience::kNone && !wait_for_answer()) {
    errno = ETIMEDOUT;
    return false;
  }
  for (int tries = 0;;) {
    iovec part{answer->bytes.data(), answer->bytes.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))];
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t n = recvmsg(fd_, &message, MSG_PEEK | MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == EINTR) continue;
    // It ended with something of ours unread: said once, ahead of what it had answered.
    if (n < 0 && errno == ECONNRESET && !std::exchange(was_reset, true)) continue;
    if (n < 0 && is_short(errno)) {
      if (++tries >= most_tries) return false;
      pause_for(kPauseNs);
      continue;
    }
    if (n <= 0) {
      errno = EPIPE;
      return false;
    }
    is_silent_ = false;
    found.add_from(message);
    const bool cut = (message.msg_flags & MSG_CTRUNC) != 0;
    if (cut && is_awaited && answer->tries + 1 < tries_of(answer->patience)) {
      found.close_all();
      if (patience == Patience::kNone) {
        errno = EMFILE;
        return false;  // it is there still, for one who has patience
      }
      ++answer->tries;
      pause_for(kPauseNs);  // another thread may close one
      continue;
    }
    char rest;
    tries = 0;
    while (recv(fd_, &rest, 1, 0) < 0 && (errno == EINTR || is_short(errno))) {
      if (errno == EINTR) continue;
      if (++tries >= most_tries) {
        found.close_all();
        errno = ENOMEM;
        return false;  // it is there still
      }
      pause_for(kPauseNs);
    }
    if (cut) {
      found.close_all();
      answer->error = EMFILE;
    }
    answer->bytes.resize(static_cast<std::size_t>(n));
    break;
  }
  asked_.pop_front();
  if (answer->bytes.size() == 1 && answer->bytes[0] == kBoxed && found.count != 0) {
    const Descriptor box(found.take_first());
    bool is_read = false;
    try {
      is_read = read_box(box.get(), answer->bytes);
    } catch (const std::bad_alloc&) {  // who asked must hear of it
    }
    if (!is_read) answer->error = ENOMEM;
  }
  if (answer->error == 0) answer->descriptor = found.take_first();
  found.close_all();
  // Pairs with the acquire loads of who asked: what it reads is there.
  answer->has_come.store(true, std::memory_order_release);
  return true;
}

// What is kept goes first. False and errno: see `ask`. At the end it may be another's
// turn.
bool SupervisorLink::ask_in_turn(Turn& turn, Note note, std::string_view question,
                                 const std::shared_ptr<Answer>& own,
                                 const KeepWaiting& keep_waiting) {
  const Patience patience = own->patience;
  Packet packet;
  packet.bytes.reserve(question.size() + 1);
  packet.bytes.push_back(static_cast<char>(note));
  packet.bytes.append(question);
  if (must_be_boxed(packet.bytes)) {
    packet.box = make_box(packet.bytes);
    if (packet.box < 0) return false;  // nothing was asked
  }
  const auto give_up = [&](int error) {
    if (packet.box >= 0) ::close(packet.box);
    errno = error;
    return false;
  };
  // 0, or an errno: one answer more, or somebody else's turn.
  const auto take_one = [&] {
    if (!keep_waiting || answer_comes(kLookAgainNs))
      return take_answer(*own) ? 0 : errno;
    return pause_turn(turn, *own, keep_waiting) ? 0 : EINTR;
  };
  const i64 deadline = now_ns() + kAnswerNs;
  while (!asked_.empty()) {
    if (patience == Patience::kNone && is_silent_ && !wait_for_answer())
      return give_up(ETIMEDOUT);
    if (const int error = take_one()) return give_up(error);
  }
  for (int tries = 0;;) {
    Sent sent;
    int error = 0;
    asked_.push_back(own);
    {
      std::lock_guard out(out_mu_);
      if (fd_ < 0) {
        sent = Sent::kGone;
      } else if ((sent = send_kept()) == Sent::kAll) {
        error = send_packet(packet);
        if (error == 0) break;
        if (is_short(error))
          sent = Sent::kShort;
        else if (error != EAGAIN)
          sent = Sent::kGone;
      } else {
        error = errno;
      }
    }
    asked_.pop_back();
    if (sent == Sent::kGone) return give_up(EPIPE);
    // What is kept stays kept, and nothing was asked.
    if (sent == Sent::kShort && ++tries >= tries_of(patience)) return give_up(error);
    if (patience == Patience::kNone && (is_silent_ || now_ns() > deadline)) {
      is_silent_ = true;  // the next one hears it at once
      return give_up(ETIMEDOUT);
    }
    if (!wait_for_room(kLookAgainMs)) return give_up(EPIPE);
    if (keep_waiting && !pause_turn(turn, *own, keep_waiting)) return give_up(EINTR);
  }
  // Pairs with the release store in take_answer, which another thread may have called.
  while (!own->has_come.load(std::memory_order_acquire))
    if (const int error = take_one()) return give_up(error);
  errno = own->error;
  return own->error == 0;
}

bool SupervisorLink::ask(std::string_view question, std::string& answer,
                         int* descriptor, const KeepWaiting& keep_waiting) {
  if (descriptor != nullptr) *descriptor = -1;
  errno = ECHILD;
  if (!is_own()) return false;
  // What needs memory comes before the question.
  const auto own = std::make_shared<Answer>(Patience::kUsual);
  Turn turn(turns_);
  if (!take_turn(turn, *own, keep_waiting)) {
    errno = EINTR;
    return false;
  }
  if (!ask_in_turn(turn, Note::kAsk, question, own, keep_waiting)) return false;
  answer = std::move(own->bytes);
  if (descriptor != nullptr) *descriptor = std::exchange(own->descriptor, -1);
  i32 error = 0;
  if (answer.size() != 1 + sizeof error || answer[0] != kCannotAnswer) return true;
  std::memcpy(&error, answer.data() + 1, sizeof error);
  errno = error;
  return false;
}

int SupervisorLink::fetch_segment(ProcId proc, Patience patience) {
  return fetch(Note::kMap, proc, patience);
}

int SupervisorLink::fetch_spill_file(ProcId proc, Patience patience) {
  return fetch(Note::kSpillFile, proc, patience);
}

// For one's turn to ask. False: another thread waits for its answer, which may come
// late.
bool SupervisorLink::take_turn(Turn& turn, Patience patience) {
  if (patience == Patience::kUsual) {
    turn.wait();
    return true;
  }
  const i64 deadline = now_ns() + kAnswerNs;
  while (!turn.wait_for(is_silent_ ? 0 : kTurnNs))
    if (is_silent_ || now_ns() >= deadline) return false;
  return true;
}

// Or for the own answer, which another thread may take. False: `keep_waiting` said so.
bool SupervisorLink::take_turn(Turn& turn, const Answer& own,
                               const KeepWaiting& keep_waiting) {
  if (!keep_waiting) {
    turn.wait();
    return true;
  }
  i64 look_at = now_ns() + kLookAgainNs;
  while (!turn.wait_for(kTurnNs)) {
    // Pairs with the release store in take_answer.
    if (own.has_come.load(std::memory_order_acquire)) break;
    if (now_ns() < look_at) continue;
    if (!keep_waiting()) return false;
    look_at = now_ns() + kLookAgainNs;
  }
  return true;
}

// Without the turn, since `keep_waiting` may ask something itself.
bool SupervisorLink::pause_turn(Turn& turn, const Answer& own,
                                const KeepWaiting& keep_waiting) {
  turn.leave();
  return keep_waiting() && take_turn(turn, own, keep_waiting);
}

int SupervisorLink::fetch(Note note, ProcId proc, Patience patience) {
  errno = ECHILD;
  if (!is_own()) return -1;
  Turn turn(turns_);
  if (!take_turn(turn, patience)) {
    is_silent_ = true;
    errno = ETIMEDOUT;
    return -1;
  }
  const auto own = std::make_shared<Answer>(patience);
  const std::string_view name{reinterpret_cast<const char*>(&proc), sizeof proc};
  if (!ask_in_turn(turn, note, name, own)) return -1;
  if (own->descriptor >= 0) return std::exchange(own->descriptor, -1);
  const std::string& answer = own->bytes;
  // The note again, then why there is none.
  i32 error = 0;
  if (answer.size() == 1 + sizeof error)
    std::memcpy(&error, answer.data() + 1, sizeof error);
  errno = error != 0 ? error : ENOENT;
  return -1;
}

bool SupervisorLink::broken() {
  if (!is_own()) return false;
  pollfd p{fd_, POLLRDHUP, 0};
  return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

}  // namespace skate
