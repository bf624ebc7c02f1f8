// Run-time CPU dispatch: the compiler makes one clone of a function for each level, and the loader
// picks one. A cloned function holds a plain loop that the compiler can vectorise, nothing else.
// RF_NO_DISPATCH turns it off: ThreadSanitizer cannot run before the loader has picked, and tests
// compile each level on its own.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12 && !defined(RF_NO_DISPATCH)
#define RF_HAS_CLONES 1
#define RF_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RF_HAS_CLONES 0
#define RF_CLONES
#endif

namespace rf {

// The level that the loader picked: "x86-64-v4", "x86-64-v3" or "default".
inline const char* cpu_level() {
#if RF_HAS_CLONES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
#endif
  return "default";
}

}  // namespace rf
