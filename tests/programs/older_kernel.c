// Runs a program as on an older kernel: `older_kernel COMMAND...`. System calls and flags since Linux
// 5.11 are refused as a kernel without them refuses them. The filter passes to all descendants.
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip)
#define REFUSE(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))
// The low half of an argument on a little-endian machine.
#define LOAD_ARGUMENT(n) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[n]))
#define CLOSE_RANGE_CLOEXEC 4
// ioctls of namespaces since 6.11: NS_GET_PID_FROM_PIDNS to NS_GET_TGID_IN_PIDNS.
#define FIRST_OF_PIDNS 0x8004b706u
#define LAST_OF_PIDNS 0x8004b709u

int main(int argc, char **argv) {
    struct sock_filter code[] = {
        LOAD(nr),
        IF(442 /* mount_setattr, 5.12 */, 1), REFUSE(ENOSYS),
        IF(463 /* setxattrat, 6.13 */, 1), REFUSE(ENOSYS),
        IF(457 /* statmount, 6.8 */, 1), REFUSE(ENOSYS),
        IF(458 /* listmount, 6.8 */, 1), REFUSE(ENOSYS),
        IF(436 /* close_range */, 3), LOAD_ARGUMENT(2), IF(CLOSE_RANGE_CLOEXEC, 6), REFUSE(EINVAL),
        IF(SYS_ioctl, 4), LOAD_ARGUMENT(1),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FIRST_OF_PIDNS, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, LAST_OF_PIDNS, 1, 0),
        REFUSE(ENOTTY),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof code / sizeof *code, code };

    if (argc < 2)
        return fprintf(stderr, "usage: older_kernel COMMAND...\n"), 2;
    // As root, so that set-user-ID programs keep working.
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        return perror("older_kernel: PR_SET_SECCOMP"), 1;
    execvp(argv[1], argv + 1);
    return perror(argv[1]), 127;
}
