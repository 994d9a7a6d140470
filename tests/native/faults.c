/* A disk that fails, and a clock that jumps. Preloaded, it lets the n-th call that changes files below a folder fail, and all
 * after it if told so.
 *
 *   FAULT_FOLDER   only files below it count
 *   FAULT_AT       which call fails, from 1; 0 for none
 *   FAULT_ERRNO    with what
 *   FAULT_STAYS    1: the disk stays so
 *   FAULT_COUNT    a file outside of the folder that gets one byte a call
 *   FAULT_CLOCK    1: the time of day is right, a day ahead and a day behind by turns
 *
 * A failing write first writes half of what it was given, as a disk does that becomes full.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long calls;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static long number(const char* name) {
  const char* text = getenv(name);
  return text == NULL ? 0 : strtol(text, NULL, 10);
}

static int inside(const char* path) {
  const char* folder = getenv("FAULT_FOLDER");
  return folder != NULL && path[0] == '/' && strncmp(path, folder, strlen(folder)) == 0;
}

static int counts(const char* path) {
  char whole[PATH_MAX];
  if (path[0] == '/') return inside(path);
  if (getcwd(whole, sizeof whole) == NULL) return 0;
  return inside(whole);
}

static int descriptor_counts(int descriptor) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return inside(path);
}

/* Whether this call, which counts, is to fail; errno is set then. */
static int fails(void) {
  const char* count = getenv("FAULT_COUNT");
  if (count != NULL) {
    const int descriptor = REAL(open)(count, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (descriptor >= 0) {
      (void)!REAL(write)(descriptor, ".", 1);
      close(descriptor);
    }
  }
  const long at = number("FAULT_AT"), call = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
  if (at == 0 || call < at || (call > at && !number("FAULT_STAYS"))) return 0;
  errno = (int)number("FAULT_ERRNO");
  return 1;
}

ssize_t write(int descriptor, const void* data, size_t size) {
  if (!descriptor_counts(descriptor) || !fails()) return REAL(write)(descriptor, data, size);
  const int code = errno;
  if (size > 1) (void)!REAL(write)(descriptor, data, size / 2);
  errno = code;
  return -1;
}

ssize_t pwrite(int descriptor, const void* data, size_t size, off_t offset) {
  if (!descriptor_counts(descriptor) || !fails()) return REAL(pwrite)(descriptor, data, size, offset);
  const int code = errno;
  if (size > 1) (void)!REAL(pwrite)(descriptor, data, size / 2, offset);
  errno = code;
  return -1;
}

ssize_t pwrite64(int descriptor, const void* data, size_t size, off64_t offset) {
  return pwrite(descriptor, data, size, offset);
}

ssize_t writev(int descriptor, const struct iovec* parts, int count) {
  return descriptor_counts(descriptor) && fails() ? -1 : REAL(writev)(descriptor, parts, count);
}

ssize_t sendfile(int to, int from, off_t* offset, size_t size) {
  return descriptor_counts(to) && fails() ? -1 : REAL(sendfile)(to, from, offset, size);
}

ssize_t sendfile64(int to, int from, off64_t* offset, size_t size) {
  return descriptor_counts(to) && fails() ? -1 : REAL(sendfile64)(to, from, offset, size);
}

ssize_t copy_file_range(int from, off64_t* from_offset, int to, off64_t* to_offset, size_t size, unsigned flags) {
  return descriptor_counts(to) && fails() ? -1 : REAL(copy_file_range)(from, from_offset, to, to_offset, size, flags);
}

int fsync(int descriptor) { return descriptor_counts(descriptor) && fails() ? -1 : REAL(fsync)(descriptor); }

int fdatasync(int descriptor) { return descriptor_counts(descriptor) && fails() ? -1 : REAL(fdatasync)(descriptor); }

int ftruncate(int descriptor, off_t size) {
  return descriptor_counts(descriptor) && fails() ? -1 : REAL(ftruncate)(descriptor, size);
}

int ftruncate64(int descriptor, off64_t size) {
  return descriptor_counts(descriptor) && fails() ? -1 : REAL(ftruncate64)(descriptor, size);
}

int rename(const char* from, const char* to) { return counts(to) && fails() ? -1 : REAL(rename)(from, to); }

int link(const char* from, const char* to) { return counts(to) && fails() ? -1 : REAL(link)(from, to); }

int mkdir(const char* path, mode_t mode) { return counts(path) && fails() ? -1 : REAL(mkdir)(path, mode); }

static int opened(const char* name, const char* path, int flags, mode_t mode) {
  if ((flags & O_CREAT) && counts(path) && fails()) return -1;
  return ((int (*)(const char*, int, ...))dlsym(RTLD_NEXT, name))(path, flags, mode);
}

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return opened("open", path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return opened("open64", path, flags, mode);
}

/* How far off the time of day is in this call. */
static time_t jump(void) {
  static unsigned long asked;
  static const time_t away[] = {0, 24 * 60 * 60, -24 * 60 * 60};
  return number("FAULT_CLOCK") ? away[__atomic_add_fetch(&asked, 1, __ATOMIC_RELAXED) % 3] : 0;
}

int clock_gettime(clockid_t clock, struct timespec* now) {
  const int status = REAL(clock_gettime)(clock, now);
  if (status == 0 && clock == CLOCK_REALTIME) now->tv_sec += jump();
  return status;
}

int gettimeofday(struct timeval* restrict now, void* restrict zone) {
  const int status = REAL(gettimeofday)(now, zone);
  if (status == 0) now->tv_sec += jump();
  return status;
}

time_t time(time_t* now) {
  const time_t there = REAL(time)(NULL) + jump();
  if (now != NULL) *now = there;
  return there;
}
