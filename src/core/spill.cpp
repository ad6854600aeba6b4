#include "spill.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace skate {
namespace {

constexpr u64 kPiece = 8 << 20;

}  // namespace

int write_pages(int fd, const std::byte* from, u64 offset, u64 bytes,
                const std::function<bool(u64)>& goes_on) {
  for (u64 done = 0; done < bytes;) {
    const ssize_t n = pwrite(fd, from + done, std::min(bytes - done, kPiece),
                             static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return ENOSPC;
    done += static_cast<u64>(n);
    if (goes_on && !goes_on(done)) return ECANCELED;
  }
  return 0;
}

int read_pages(int fd, std::byte* to, u64 offset, u64 bytes) {
  for (u64 done = 0; done < bytes;) {
    const ssize_t n = pread(fd, to + done, std::min(bytes - done, kPiece),
                            static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return EIO;
    done += static_cast<u64>(n);
  }
  return 0;
}

void discard_pages(int fd, u64 offset, u64 bytes) {
  while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                   static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0 &&
         errno == EINTR) {
  }
}

bool is_about_room(int error) {
  return error == EDQUOT || error == ENOSPC || error == EFBIG;
}

}  // namespace skate
