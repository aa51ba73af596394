/*
 * LD_PRELOAD for linux.uml 6.1 on processors with AMX.
 *
 * That kernel moves 2.7 KB of extended registers of its tasks by PTRACE_SETREGSET. A host kernel takes only the whole
 * state, which is 11 KB once a processor has tile registers, and answers EFAULT: User-Mode Linux dies at its first
 * task. Here each such call is made with a buffer of the whole size. What lies beyond the caller's part is tile state
 * that no guest task may use (it needs a permission the guest cannot ask for), so it is left in its initial state.
 *
 * Build: gcc -shared -fPIC -O2 -o uml_xstate.so uml_xstate.c
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { GETREGSET = 0x4204, SETREGSET = 0x4205, XSTATE_BV = 512, WHOLE = 65536 };

static long raw(long request, pid_t pid, void *addr, void *data)
{
	return syscall(SYS_ptrace, request, pid, addr, data);
}

static long xstate(long request, pid_t pid, void *addr, struct iovec *part)
{
	static __thread unsigned char whole[WHOLE];
	struct iovec io = { whole, sizeof(whole) };

	if (raw(GETREGSET, pid, addr, &io) < 0)
		return -1;
	if (request == GETREGSET || io.iov_len <= part->iov_len) {
		if (io.iov_len < part->iov_len)
			part->iov_len = io.iov_len;
		if (request == SETREGSET)
			return raw(request, pid, addr, part);
		memcpy(part->iov_base, whole, part->iov_len);
		return 0;
	}
	memcpy(whole, part->iov_base, part->iov_len);
	/* Bits 17 and 18 are the tile registers. */
	uint64_t used;
	memcpy(&used, whole + XSTATE_BV, sizeof(used));
	used &= ~(3ULL << 17);
	memcpy(whole + XSTATE_BV, &used, sizeof(used));
	return raw(SETREGSET, pid, addr, &io);
}

/* glibc declares it with variable arguments; all four are always passed by linux.uml or ignored by the kernel. */
long ptrace(int request, ...)
{
	va_list args;
	va_start(args, request);
	pid_t pid = va_arg(args, pid_t);
	void *addr = va_arg(args, void *);
	void *data = va_arg(args, void *);
	va_end(args);

	if ((request == GETREGSET || request == SETREGSET) && (uintptr_t)addr == NT_X86_XSTATE)
		return xstate(request, pid, addr, data);
	/* PTRACE_PEEK* answer through `data` in the raw call. */
	if (request >= 1 && request <= 3) {
		long word = 0;
		if (raw(request, pid, addr, &word) < 0)
			return -1;
		errno = 0;
		return word;
	}
	return raw(request, pid, addr, data);
}
