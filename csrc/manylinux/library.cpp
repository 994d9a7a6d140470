// What a compiler of today takes from libraries newer than glibc 2.28 and the libstdc++ of GCC 8, the ones of a manylinux_2_28
// wheel, in terms of those older ones. Each name is defined here under hidden visibility, so that the binary takes it from
// itself and gives it to nobody. Red Hat's toolsets do the same with their libstdc++_nonshared.a; auditwheel says when a name
// is missing.
#include <pthread.h>
#include <sys/stat.h>

#include <new>
#include <sstream>

#define MOBIZO_HIDDEN extern "C" __attribute__((visibility("hidden")))

#if defined(__x86_64__)
#define MOBIZO_FIRST_GLIBC "GLIBC_2.2.5"
constexpr int kStatVersion = 1;
#elif defined(__aarch64__)
#define MOBIZO_FIRST_GLIBC "GLIBC_2.17"
constexpr int kStatVersion = 0;
#endif
#define MOBIZO_FIRST(alias, name) __asm__(".symver " #alias ", " #name "@" MOBIZO_FIRST_GLIBC)

// --- libm: 2.29 has these without the error handling of System V; the values are the same
// ----------------------------------------
extern "C" double mobizo_first_exp(double);
extern "C" double mobizo_first_log(double);
extern "C" double mobizo_first_pow(double, double);
MOBIZO_FIRST(mobizo_first_exp, exp);
MOBIZO_FIRST(mobizo_first_log, log);
MOBIZO_FIRST(mobizo_first_pow, pow);
MOBIZO_HIDDEN double exp(double x) { return mobizo_first_exp(x); }
MOBIZO_HIDDEN double log(double x) { return mobizo_first_log(x); }
MOBIZO_HIDDEN double pow(double x, double y) { return mobizo_first_pow(x, y); }

// --- libc: 2.33 has stat itself, 2.34 the threads, 2.32 a variable by which shared_ptr does without atomics
// -----------------------
extern "C" int mobizo_first_stat(int, const char*, struct stat*);
extern "C" int mobizo_first_fstat(int, int, struct stat*);
extern "C" int mobizo_first_once(pthread_once_t*, void (*)());
MOBIZO_FIRST(mobizo_first_stat, __xstat);
MOBIZO_FIRST(mobizo_first_fstat, __fxstat);
MOBIZO_FIRST(mobizo_first_once, pthread_once);
MOBIZO_HIDDEN int stat(const char* path, struct stat* out) { return mobizo_first_stat(kStatVersion, path, out); }
MOBIZO_HIDDEN int fstat(int descriptor, struct stat* out) { return mobizo_first_fstat(kStatVersion, descriptor, out); }
MOBIZO_HIDDEN int pthread_once(pthread_once_t* once, void (*function)()) { return mobizo_first_once(once, function); }
MOBIZO_HIDDEN char __libc_single_threaded;
char __libc_single_threaded = 0;  // there may be more than one: always right

// --- libstdc++: constructors of GCC 9, an exception's thrower of GCC 11
// -----------------------------------------------------------
MOBIZO_HIDDEN void mobizo_ostringstream(void*) __asm__("_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev");
MOBIZO_HIDDEN void mobizo_stringstream(void*) __asm__("_ZNSt7__cxx1118basic_stringstreamIcSt11char_traitsIcESaIcEEC1Ev");
MOBIZO_HIDDEN void mobizo_throw_bad_length() __asm__("_ZSt28__throw_bad_array_new_lengthv");
void mobizo_ostringstream(void* place) { ::new (place) std::ostringstream(std::ios_base::out); }
void mobizo_stringstream(void* place) { ::new (place) std::stringstream(std::ios_base::in | std::ios_base::out); }
void mobizo_throw_bad_length() { throw std::bad_array_new_length(); }
