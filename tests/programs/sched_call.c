/*
 * setpriority(2) and sched_setscheduler(2) by a thread that does not lead its process. Prints the nice value that it has
 * afterwards and whether the leader still has its own, then whether SCHED_BATCH and a priority beyond all limits are set.
 *
 *   sched_call attributes   sched_setattr(2) with a nice value out of its range, of a newer kernel, and with the policy kept
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
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

struct attributes {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t more[9];
};

static void say(const char *what, struct attributes *attributes)
{
	const char *result = syscall(SYS_sched_setattr, 0, attributes, 0) ? strerrorname_np(errno) : "ok";
	printf("%s: %s, nice %d, policy %d\n", what, result, getpriority(PRIO_PROCESS, 0), sched_getscheduler(0));
}

static int attributes(void)
{
	enum { KEEP_POLICY = 8 };
	struct attributes low = { .size = 48, .nice = -100 }, newer = { .size = sizeof newer, .nice = -4 };
	struct attributes keep = { .size = 48, .policy = SCHED_FIFO, .flags = KEEP_POLICY, .nice = -6 };
	say("out of range", &low);
	say("newer", &newer);
	newer.more[8] = 1;
	say("newer with more", &newer);
	set(SCHED_BATCH, 0);
	say("kept", &keep);
	keep.priority = 1;
	say("kept with a priority", &keep);
	return 0;
}

int main(int count, char **word)
{
	if (count == 2 && !strcmp(word[1], "attributes"))
		return attributes();
	pthread_t thread;
	int own = getpriority(PRIO_PROCESS, 0);
	if (pthread_create(&thread, NULL, threaded, NULL) || pthread_join(thread, NULL))
		return 1;
	printf("%s\n", getpriority(PRIO_PROCESS, 0) == own ? "as before" : "changed");
	return 0;
}
