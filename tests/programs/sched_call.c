/*
 * setpriority(2) and sched_setscheduler(2) by a thread that does not lead its process. Prints the nice value that it has
 * afterwards and whether the leader still has its own, then whether SCHED_BATCH and a priority beyond all limits are set.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *set(int policy, int priority)
{
	struct sched_param param = { priority };
	return syscall(SYS_sched_setscheduler, 0, policy, &param) ? strerrorname_np(errno) : "ok";
}

static void *threaded(void *nothing)
{
	if (setpriority(PRIO_PROCESS, 0, -5))
		perror("setpriority");
	printf("%d\n", getpriority(PRIO_PROCESS, 0));
	printf("%s %s\n", set(SCHED_BATCH, 0), set(SCHED_FIFO, 99));
	return nothing;
}

int main(void)
{
	pthread_t thread;
	int own = getpriority(PRIO_PROCESS, 0);
	if (pthread_create(&thread, NULL, threaded, NULL) || pthread_join(thread, NULL))
		return 1;
	printf("%s\n", getpriority(PRIO_PROCESS, 0) == own ? "as before" : "changed");
	return 0;
}
