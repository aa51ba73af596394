/*
 * Two containers whose readers have the same thread id, one at once after the other.
 *
 *   same_tid namespaces|host TRIES MEMINFO KB_OF_FIRST KB_OF_SECOND FOLDER_OF_FIRST FOLDER_OF_SECOND...
 *
 * In each try a process of the first container, in the cgroups of its folders, reads MemTotal and ends; the kernel is asked
 * to give its number to the process of the second container, which reads too. "namespaces": each is the first process of a pid
 * namespace of its own. Prints "tries=N right=N other=N failed=N": how often the second one saw its own number, that of the
 * first one, or neither.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void enter(const char *folder)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/cgroup.procs", folder);
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, "0", 1) != 1)
		_exit(1);
	close(fd);
}

static long total(const char *path)
{
	char text[4096];
	long kb = -1;
	int fd = open(path, O_RDONLY);
	ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (length > 0) {
		text[length] = 0;
		sscanf(text, "MemTotal: %ld", &kb);
	}
	return kb;
}

/* A process with this number in our namespace reads, in the cgroups of every second folder. False: the number is taken. */
static int reads(int in_namespace, pid_t wanted, char **folders, const char *path, long *kb)
{
	pid_t inside[2] = { 1, wanted };
	struct clone_args args = {
		.flags = in_namespace ? CLONE_NEWPID : 0,
		.exit_signal = SIGCHLD,
		.set_tid = (uint64_t)(in_namespace ? inside : inside + 1),
		.set_tid_size = in_namespace ? 2 : 1,
	};
	*kb = -1;
	pid_t child = syscall(SYS_clone3, &args, sizeof args);
	if (child < 0 && errno == EEXIST)
		return 0;
	if (child < 0) {
		printf("clone3: %s\n", strerrorname_np(errno));
		exit(1);
	}
	if (child == 0) {
		for (; folders[0]; folders += folders[1] ? 2 : 1)
			enter(folders[0]);
		*kb = total(path);
		_exit(0);
	}
	waitpid(child, 0, 0);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc < 8)
		return 2;
	int in_namespace = !strcmp(argv[1], "namespaces"), tries = atoi(argv[2]);
	long first = atol(argv[4]), second = atol(argv[5]), right = 0, other = 0, failed = 0;
	long *kb = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int done = 0; done < tries;) {
		pid_t free = fork();
		if (free == 0)
			_exit(0);
		waitpid(free, 0, 0);
		if (!reads(in_namespace, free, argv + 6, argv[3], &kb[0]) ||
		    !reads(in_namespace, free, argv + 7, argv[3], &kb[1]))
			continue;
		done++;
		if (kb[0] != first)
			failed++;
		else if (kb[1] == second)
			right++;
		else if (kb[1] == first)
			other++;
		else
			failed++;
	}
	printf("tries=%d right=%ld other=%ld failed=%ld\n", tries, right, other, failed);
	return 0;
}
