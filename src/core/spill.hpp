// Files that blocks are spilled to: plain transfers, which return 0 or an errno.
#pragma once

#include "platform.hpp"

namespace skate {

int write_pages(int fd, const std::byte* from, u64 offset, u64 bytes);
// EIO if the file ends before.
int read_pages(int fd, std::byte* to, u64 offset, u64 bytes);
// Gives the space back, where the file system can.
void discard_pages(int fd, u64 offset, u64 bytes);

}  // namespace skate
