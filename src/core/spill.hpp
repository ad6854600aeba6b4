// Files that blocks are spilled to: plain transfers, which return 0 or an errno.
#pragma once

#include <functional>

#include "platform.hpp"

namespace skate {

// Asks after each piece whether to go on, and tells the bytes that are done; if not, it
// ends with ECANCELED.
int write_pages(int fd, const std::byte* from, u64 offset, u64 bytes,
                const std::function<bool(u64)>& goes_on = {});
// EIO if the file ends before.
int read_pages(int fd, std::byte* to, u64 offset, u64 bytes);
// Gives the space back, where the file system can.
void discard_pages(int fd, u64 offset, u64 bytes);
// There is no room for this in the file; there may be for something smaller, or nearer
// to its beginning.
bool is_about_room(int error);

}  // namespace skate
