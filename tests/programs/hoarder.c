/*
 * Makes pid namespaces and takes as much of the daemon in each as it can.
 *
 *   hoarder NAMESPACES FILES PATH [UID]
 *
 * The first process of each namespace opens PATH until it has FILES open, or a call fails: for reading and writing, or
 * with FILES 0 once for reading, to be closed at once. With UID all of that is done by that user, who makes a user
 * namespace for each pid namespace. Prints "opened=N", and "refused N ERRNO" for each errno, and holds everything
 * until it is killed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

struct seen {
	int opened, refused[256];
};

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerrorname_np(errno));
	exit(1);
}

static void take(struct seen *seen, int files, const char *path)
{
	for (int n = 0; n < (files ? files : 1); n++) {
		char text[64];
		int fd = open(path, (files ? O_RDWR : O_RDONLY) | O_NONBLOCK);
		if (fd < 0 || (!files && read(fd, text, sizeof text) <= 0)) {
			__atomic_fetch_add(&seen->refused[errno & 255], 1, __ATOMIC_RELAXED);
			return;
		}
		__atomic_fetch_add(&seen->opened, 1, __ATOMIC_RELAXED);
		if (!files)
			close(fd);
	}
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	int namespaces = atoi(argv[1]), files = atoi(argv[2]), flags = CLONE_NEWPID | SIGCHLD, done[2];
	struct seen *seen = mmap(0, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (argc > 4) {
		if (setgroups(0, 0) || setgid(atoi(argv[4])) || setuid(atoi(argv[4])))
			fail("setuid");
		// Whose /proc files are root's cannot make user namespaces with a map, but this needs none.
		prctl(PR_SET_DUMPABLE, 1);
		flags |= CLONE_NEWUSER;
	}
	if (pipe(done))
		fail("pipe");
	for (int n = 0; n < namespaces; n++) {
		long child = syscall(SYS_clone, flags, 0, 0, 0, 0);
		if (child < 0)
			fail("clone");
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			take(seen, files, argv[3]);
			if (write(done[1], "", 1) != 1)
				return 1;
			for (;;)
				pause();
		}
	}
	for (int n = 0; n < namespaces; n++) {
		char one;
		if (read(done[0], &one, 1) != 1)
			fail("read");
	}
	printf("opened=%d\n", seen->opened);
	for (int n = 0; n < 256; n++)
		if (seen->refused[n])
			printf("refused %d %s\n", seen->refused[n], strerrorname_np(n));
	printf("done\n");
	fflush(stdout);
	for (;;)
		pause();
}
