/* Preloaded into a session's processes: makes one kind of system call fail.
 *
 *   SKATE_FAIL=call:ERRNO    the call, by its name below, and the number of its error;
 *                            "descriptors": recvmsg works, but what it brings is lost
 *   SKATE_FAIL_IN=role       driver, supervisor, zygote or worker
 *   SKATE_FAIL_AT=n          first the n-th such call of a process (from 1) ...
 *   SKATE_FAIL_EVERY=k       ... and each k-th after it; 0: that one alone
 *   SKATE_FAIL_ARMED=path    only while this file exists
 *   SKATE_FAIL_LOG=path      gets one line for each call that failed
 *
 * Memory that Python itself maps does not count: mmap and madvise fail for callers in
 * skate's own module only.
 */
#ifndef __x86_64__
#error "the system call below is written for x86-64"
#endif
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long raw(long n, long a, long b, long c, long d, long e, long f) {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

static int counted; /* calls so far in this process */
static pid_t counted_in;

static const char *role_here(void) {
  char name[32] = {0};
  long fd = raw(SYS_openat, AT_FDCWD, (long)"/proc/self/comm", O_RDONLY, 0, 0, 0);
  if (fd < 0) return "";
  long n = raw(SYS_read, fd, (long)name, sizeof name - 1, 0, 0, 0);
  raw(SYS_close, fd, 0, 0, 0, 0, 0);
  if (n <= 0) return "";
  if (strncmp(name, "skate-zyg", 9) == 0) return "zygote";
  if (strncmp(name, "skate-wor", 9) == 0) return "worker";
  if (strncmp(name, "skate-sup", 9) == 0 || getenv("SKATE_SESSION_MARK") != NULL)
    return "supervisor";
  return "driver";
}

static int called_by_core(void *caller) {
  Dl_info info;
  if (dladdr(caller, &info) == 0 || info.dli_fname == NULL) return 0;
  const char *base = strrchr(info.dli_fname, '/');
  return strncmp(base == NULL ? info.dli_fname : base + 1, "_core", 5) == 0;
}

/* Whether this call is to fail; errno is set then. */
static int fails(const char *call) {
  const char *wanted = getenv("SKATE_FAIL");
  if (wanted == NULL) return 0;
  const size_t size = strlen(call);
  if (strncmp(wanted, call, size) != 0 || wanted[size] != ':') return 0;
  const char *armed = getenv("SKATE_FAIL_ARMED");
  if (armed != NULL &&
      raw(SYS_faccessat, AT_FDCWD, (long)armed, F_OK, 0, 0, 0) != 0)
    return 0;
  const char *role = role_here(), *failing = getenv("SKATE_FAIL_IN");
  pid_t me = (pid_t)raw(SYS_getpid, 0, 0, 0, 0, 0, 0);
  /* The zygote forks in a helper, which has its memory and a worker's name. */
  if (strcmp(call, "fork") == 0 && strcmp(role, "worker") == 0) {
    role = "zygote";
    me = (pid_t)raw(SYS_getppid, 0, 0, 0, 0, 0, 0);
  }
  if (failing == NULL || strcmp(role, failing) != 0) return 0;
  if (counted_in != me) {
    counted_in = me;
    __atomic_store_n(&counted, 0, __ATOMIC_SEQ_CST);
  }
  const int number = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
  const char *at = getenv("SKATE_FAIL_AT"), *every = getenv("SKATE_FAIL_EVERY");
  const int first = at == NULL ? 1 : atoi(at), step = every == NULL ? 0 : atoi(every);
  if (number < first) return 0;
  if (number != first && (step == 0 || (number - first) % step != 0)) return 0;
  const char *log = getenv("SKATE_FAIL_LOG");
  if (log != NULL) {
    char line[64];
    const int n = snprintf(line, sizeof line, "%s %d %d\n", call, (int)me, number);
    const long fd = raw(SYS_openat, AT_FDCWD, (long)log,
                        O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600, 0, 0);
    if (fd >= 0) {
      raw(SYS_write, fd, (long)line, n, 0, 0, 0);
      raw(SYS_close, fd, 0, 0, 0, 0, 0);
    }
  }
  errno = atoi(wanted + size + 1);
  return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int memfd_create(const char *name, unsigned flags) {
  return fails("memfd_create") ? -1 : NEXT(memfd_create)(name, flags);
}

int ftruncate(int fd, off_t size) {
  return fails("ftruncate") ? -1 : NEXT(ftruncate)(fd, size);
}
int ftruncate64(int fd, off64_t size) {
  return fails("ftruncate") ? -1 : NEXT(ftruncate64)(fd, size);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
  if (called_by_core(__builtin_return_address(0)) && fails("mmap")) return MAP_FAILED;
  const long got = raw(SYS_mmap, (long)at, (long)size, protection, flags, fd, offset);
  if (got < 0 && got > -4096) {
    errno = (int)-got;
    return MAP_FAILED;
  }
  return (void *)got;
}
void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t offset) {
  if (called_by_core(__builtin_return_address(0)) && fails("mmap")) return MAP_FAILED;
  const long got = raw(SYS_mmap, (long)at, (long)size, protection, flags, fd, offset);
  if (got < 0 && got > -4096) {
    errno = (int)-got;
    return MAP_FAILED;
  }
  return (void *)got;
}

int madvise(void *at, size_t size, int advice) {
  if (called_by_core(__builtin_return_address(0)) && fails("madvise")) return -1;
  return NEXT(madvise)(at, size, advice);
}

int fallocate(int fd, int mode, off_t at, off_t size) {
  return fails("fallocate") ? -1 : NEXT(fallocate)(fd, mode, at, size);
}
int fallocate64(int fd, int mode, off64_t at, off64_t size) {
  return fails("fallocate") ? -1 : NEXT(fallocate64)(fd, mode, at, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  return fails("pwrite") ? -1 : NEXT(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  return fails("pwrite") ? -1 : NEXT(pwrite64)(fd, data, size, at);
}
ssize_t pread(int fd, void *data, size_t size, off_t at) {
  return fails("pread") ? -1 : NEXT(pread)(fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
  return fails("pread") ? -1 : NEXT(pread64)(fd, data, size, at);
}

/* Out of descriptors, the kernel delivers a message without those that it carries. */
static void lose_descriptors(struct msghdr *message) {
  for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    if (!fails("descriptors")) continue;
    const int *fds = (const int *)CMSG_DATA(c);
    const size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof *fds;
    for (size_t i = 0; i < n; ++i) close(fds[i]);
    message->msg_controllen = 0;
    message->msg_flags |= MSG_CTRUNC;
    return;
  }
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
  if (fails("recvmsg")) return -1;
  const ssize_t got = NEXT(recvmsg)(fd, message, flags);
  if (got >= 0) lose_descriptors(message);
  return got;
}
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
  return fails("sendmsg") ? -1 : NEXT(sendmsg)(fd, message, flags);
}

int socketpair(int domain, int type, int protocol, int fds[2]) {
  return fails("socketpair") ? -1 : NEXT(socketpair)(domain, type, protocol, fds);
}
int pipe2(int fds[2], int flags) { return fails("pipe2") ? -1 : NEXT(pipe2)(fds, flags); }
int pipe(int fds[2]) { return fails("pipe2") ? -1 : NEXT(pipe)(fds); }
/* This is how Python duplicates a descriptor. */
#define FCNTL(name)                                                       \
  va_list rest;                                                           \
  va_start(rest, command);                                                \
  void *const argument = va_arg(rest, void *);                            \
  va_end(rest);                                                           \
  if (command == F_DUPFD_CLOEXEC && fails("dup")) return -1;              \
  return NEXT(name)(fd, command, argument)

int fcntl(int fd, int command, ...) { FCNTL(fcntl); }
int fcntl64(int fd, int command, ...) { FCNTL(fcntl64); }

pid_t fork(void) { return fails("fork") ? -1 : NEXT(fork)(); }

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                   void *(*run)(void *), void *argument) {
  return fails("pthread_create") ? errno
                                 : NEXT(pthread_create)(thread, attributes, run, argument);
}

static int opens_unnamed(int flags) { return (flags & O_TMPFILE) == O_TMPFILE; }

#define OPEN(name, ...)                                              \
  va_list rest;                                                      \
  va_start(rest, flags);                                             \
  const mode_t mode = (mode_t)va_arg(rest, int);                     \
  va_end(rest);                                                      \
  if (opens_unnamed(flags) && fails("open")) return -1;              \
  return NEXT(name)(__VA_ARGS__, flags, mode)

int open(const char *path, int flags, ...) { OPEN(open, path); }
int open64(const char *path, int flags, ...) { OPEN(open64, path); }
int openat(int folder, const char *path, int flags, ...) { OPEN(openat, folder, path); }
int openat64(int folder, const char *path, int flags, ...) { OPEN(openat64, folder, path); }

/* What has no function of its own in the C library, or is called around it. */
long syscall(long number, ...) {
  va_list rest;
  va_start(rest, number);
  long a[6];
  for (int i = 0; i < 6; ++i) a[i] = va_arg(rest, long);
  va_end(rest);
  if ((number == SYS_memfd_create && fails("memfd_create")) ||
      (number == SYS_pidfd_open && fails("pidfd_open")) ||
      (number == SYS_clone && fails("fork")) ||
      (number == SYS_futex && fails("futex")))
    return -1;
  const long got = raw(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  if (got < 0 && got > -4096) {
    errno = (int)-got;
    return -1;
  }
  return got;
}
