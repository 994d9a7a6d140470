// How a program starts where glibc is older than 2.34, which expects the program itself to run its constructors; a newer one
// does as the older would if it is given a function for that, as it was until then.
#define MOBIZO_HIDDEN extern "C" __attribute__((visibility("hidden")))

#if defined(__x86_64__)
#define MOBIZO_FIRST_GLIBC "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define MOBIZO_FIRST_GLIBC "GLIBC_2.17"
#endif

using Main = int (*)(int, char**, char**);
using Constructor = void (*)(int, char**, char**);

extern "C" int mobizo_first_start(Main, int, char**, Constructor, void (*)(), void (*)(), void*);
__asm__(".symver mobizo_first_start, __libc_start_main@" MOBIZO_FIRST_GLIBC);

MOBIZO_HIDDEN void _init();
// Of the linker.
MOBIZO_HIDDEN Constructor __preinit_array_start[], __preinit_array_end[], __init_array_start[], __init_array_end[];

namespace {

void construct(int arguments, char** values, char** environment) {
  for (Constructor* each = __preinit_array_start; each != __preinit_array_end; ++each) (*each)(arguments, values, environment);
  _init();
  for (Constructor* each = __init_array_start; each != __init_array_end; ++each) (*each)(arguments, values, environment);
}

}  // namespace

MOBIZO_HIDDEN int __libc_start_main(Main main, int arguments, char** values, Constructor, void (*)(),
                                    void (*finish_libraries)(), void* stack_end) {
  return mobizo_first_start(main, arguments, values, construct, nullptr, finish_libraries, stack_end);
}
