/* User mode Linux 6.1 sets as much of a process's registers as the largest processor had when it was written. A kernel on one
 * that has more (AMX) takes all or nothing (xstateregs_set() in arch/x86/kernel/fpu/regset.c), and no process in the guest
 * would ever run. Preloaded into it, this adds what the process has of the rest. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

/* It is called by the guest's one processor, on a stack that is small. */
static char state[1 << 16] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...)
{
    static long (*kernel)(enum __ptrace_request, ...);
    va_list arguments;
    va_start(arguments, request);
    int pid = va_arg(arguments, int);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);
    if (!kernel)
        kernel = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE) {
        const struct iovec *part = data;
        struct iovec whole = { state, sizeof state };
        if (kernel(PTRACE_GETREGSET, pid, address, &whole) == 0 && part->iov_len < whole.iov_len) {
            memcpy(state, part->iov_base, part->iov_len);
            return kernel(request, pid, address, &whole);
        }
    }
    return kernel(request, pid, address, data);
}
