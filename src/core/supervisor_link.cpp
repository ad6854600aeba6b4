#include "supervisor_link.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace skate {

SupervisorLink::~SupervisorLink() { close(); }

void SupervisorLink::close() {
  std::lock_guard lock(mu_);
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

bool SupervisorLink::tell(Note note, std::string_view payload) {
  char kind = static_cast<char>(note);
  iovec parts[2] = {{&kind, 1}, {const_cast<char*>(payload.data()), payload.size()}};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  for (;;) {
    if (sendmsg(fd_, &message, MSG_NOSIGNAL) >= 0) return true;
    if (errno != EINTR) return false;
  }
}

bool SupervisorLink::receive(std::string& answer, int* descriptor) {
  ssize_t size;
  do {
    size = recv(fd_, nullptr, 0, MSG_PEEK | MSG_TRUNC);
  } while (size < 0 && errno == EINTR);
  if (size <= 0) return false;
  answer.resize(static_cast<std::size_t>(size));
  iovec part{answer.data(), answer.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n;
  do {
    n = recvmsg(fd_, &message, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n <= 0) return false;
  answer.resize(static_cast<std::size_t>(n));
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    int fd;
    std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
    if (descriptor != nullptr)
      *descriptor = fd;
    else
      ::close(fd);
  }
  return true;
}

int SupervisorLink::fetch_segment(ProcId proc) { return fetch(Note::kMap, proc); }

int SupervisorLink::fetch_spill_file(ProcId proc) {
  return fetch(Note::kSpillFile, proc);
}

int SupervisorLink::fetch(Note note, ProcId proc) {
  std::lock_guard lock(mu_);
  if (!tell(note, {reinterpret_cast<const char*>(&proc), sizeof proc})) return -1;
  int fd = -1;
  std::string answer;
  return receive(answer, &fd) ? fd : -1;
}

bool SupervisorLink::ask(std::string_view question, std::string& answer,
                         int* descriptor) {
  if (descriptor != nullptr) *descriptor = -1;
  std::lock_guard lock(mu_);
  return tell(Note::kAsk, question) && receive(answer, descriptor);
}

bool SupervisorLink::broken() {
  pollfd p{fd_, POLLRDHUP, 0};
  return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

}  // namespace skate
