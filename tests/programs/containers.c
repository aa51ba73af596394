// Containers that sleep: each is a pid namespace and a mount namespace with a procfs and a /dev of its own.
//   containers
// Standard input has the folders of the control groups of each container, a line a container. The answer to a line is the
// process id of the container's first process. All end when standard input ends.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void enter(char *dirs)
{
	for (char *dir = strtok(dirs, " \n"); dir; dir = strtok(NULL, " \n")) {
		char path[4200];
		snprintf(path, sizeof path, "%s/cgroup.procs", dir);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1)
			err(1, "cannot enter %s", path);
		close(fd);
	}
}

static void make_mounts(void)
{
	if (mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("proc", "/proc", "proc", 0, NULL) ||
	    mount("dev", "/dev", "tmpfs", 0, "mode=755"))
		err(1, "mount");
}

// Starts one whose first process ends when the last writer of `life` does.
static pid_t start(char *dirs, const int life[2])
{
	int ready[2], number[2];
	pid_t first = 0;
	char byte = 0;
	if (pipe2(ready, O_CLOEXEC) || pipe2(number, O_CLOEXEC))
		err(1, "pipe");
	pid_t between = fork();
	if (between < 0)
		err(1, "fork");
	if (!between) {
		enter(dirs);
		if (unshare(CLONE_NEWPID | CLONE_NEWNS))
			err(1, "unshare");
		first = fork();
		if (first < 0)
			err(1, "fork");
		if (first)
			_exit(write(number[1], &first, sizeof first) != sizeof first);
		make_mounts();
		// Only the program itself writes to the pipe that keeps containers alive.
		close(life[1]);
		if (write(ready[1], "", 1) != 1)
			err(1, "write");
		close_range(0, 2, 0);
		_exit(read(life[0], &byte, 1) != 0);
	}
	close(ready[1]);
	close(number[1]);
	if (read(number[0], &first, sizeof first) != sizeof first || read(ready[0], &byte, 1) != 1)
		errx(1, "a container was not started");
	close(ready[0]);
	close(number[0]);
	waitpid(between, NULL, 0);
	return first;
}

int main(void)
{
	static char line[4096];
	int life[2];
	if (pipe2(life, O_CLOEXEC) || prctl(PR_SET_CHILD_SUBREAPER, 1))
		err(1, "cannot prepare");
	setlinebuf(stdout);
	while (fgets(line, sizeof line, stdin))
		printf("%d\n", start(line, life));
	close(life[1]);
	while (wait(NULL) > 0)
		;
	return 0;
}
