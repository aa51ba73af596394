/*
 * mknod(2), mknodat(2) and setxattr(2) as no shell can call them. Prints "ok" or the errno's name, one line for each call.
 *
 *   node_call make PATH MAJOR MINOR     mknod
 *   node_call edges FOLDER              strings at the end of memory, without an end, and nowhere; odd descriptors
 *   node_call thread PATH               by a thread that does not lead its process
 *   node_call signals PATH COUNT MS     makes and removes it while a signal comes every few milliseconds
 *   node_call flip FOLDER OUTSIDE       a second thread makes FOLDER/t a folder and a link to OUTSIDE in turn
 *   node_call flood FOLDER THREADS MS   makes and removes nodes in many threads
 *   node_call opaque PATH               setxattr of trusted.overlay.opaque
 *   node_call loop PATH COUNT           prints how many nanoseconds a mknod takes, its removal not counted
 */
#include "hostile.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define NULL_DEVICE makedev(1, 3)

static int make_at(int folder, const char *path, unsigned long long device)
{
	return syscall(SYS_mknodat, folder, path, S_IFCHR | 0666, device);
}

static int make(const char *path)
{
	return syscall(SYS_mknod, path, S_IFCHR | 0666, NULL_DEVICE);
}

static void say(const char *what, int result)
{
	printf("%s%s\n", what, result == 0 ? "ok" : strerrorname_np(errno));
	fflush(stdout);
}

static int edges(const char *where)
{
	char *text = before_the_end(8);
	int folder = open(where, O_RDONLY | O_DIRECTORY), path = open(where, O_PATH), file;
	if (chdir(where))
		return 1;
	strcpy(text, "the-end");
	say("at the end: ", make(text));
	char *endless = before_the_end(8192);
	memset(endless, 'a', 8192);
	say("endless: ", make(endless));
	say("cut off: ", make(memset(before_the_end(8), 'a', 8)));
	say("nowhere: ", make((char *)8));
	say("no path: ", make(NULL));
	say("empty: ", make(""));
	say("by a folder: ", make_at(folder, "by-fd", NULL_DEVICE));
	say("by O_PATH: ", make_at(path, "by-path", NULL_DEVICE));
	say("by the folder: ", make_at(AT_FDCWD, "by-cwd", NULL_DEVICE));
	say("closed: ", make_at(999, "x", NULL_DEVICE));
	say("negative: ", make_at(-7, "x", NULL_DEVICE));
	file = open("file", O_CREAT | O_RDWR, 0600);
	say("by a file: ", make_at(file, "x", NULL_DEVICE));
	snprintf(endless, 4096, "%s/absolute", where);
	say("absolute: ", make_at(999, endless, NULL_DEVICE));
	say("exists: ", make("by-fd"));
	if (symlink("nothing", "dangling") || symlink("loop", "loop") || symlink(where, "around"))
		return 1;
	say("a dangling link: ", make("dangling"));
	say("by a link: ", make("around/by-link"));
	say("by a loop: ", make("loop/x"));
	say("a slash: ", make("slash/"));
	say("a huge number: ", make_at(folder, "huge", 1ULL << 40 | NULL_DEVICE));
	say("a disk: ", syscall(SYS_mknod, "disk", S_IFBLK | 0600, makedev(8, 0)));
	say("memory: ", syscall(SYS_mknod, "mem", S_IFCHR | 0600, makedev(1, 1)));
	say("a whiteout: ", syscall(SYS_mknod, "white", S_IFCHR, 0));
	say("a fifo: ", syscall(SYS_mknod, "fifo", S_IFIFO | 0600, 0));
	say("through /proc: ", make("/proc/self/cwd/magic"));
	return 0;
}

static char node[4096];

static int flipping(const char *where, const char *outside)
{
	pthread_t thread;
	int made = 0;
	snprintf(folder, sizeof folder, "%s/t", where);
	snprintf(linked, sizeof linked, "%s/l", where);
	snprintf(node, sizeof node, "%s/t/node", where);
	mkdir(folder, 0755);
	if (symlink(outside, linked) || pthread_create(&thread, NULL, flip, NULL))
		return 1;
	for (int i = 0; i < 500; i++) {
		made += make(node) == 0;
		unlink(node);
	}
	stop = 1;
	pthread_join(thread, NULL);
	printf("made some: %d\n", made > 0);
	return 0;
}

static void nothing(int signal)
{
	(void)signal;
}

static int interrupted(const char *path, int count, long ms)
{
	struct sigaction action = { .sa_handler = nothing, .sa_flags = SA_RESTART };
	struct itimerval often = { { 0, ms * 1000 }, { 0, ms * 1000 } };
	int failed = 0;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < count; i++) {
		if (make(path)) {
			say("", -1);
			failed++;
		}
		if (unlink(path)) {
			say("not there ", -1);
			failed++;
		}
	}
	printf("failed: %d\n", failed);
	return 0;
}

static void *threaded(void *path)
{
	say("", make(path));
	return NULL;
}

static void *flood(void *number)
{
	char path[4200];
	snprintf(path, sizeof path, "%s/node%ld", folder, (long)number);
	while (!stop) {
		make(path);
		unlink(path);
	}
	return NULL;
}

static int flooding(const char *where, long threads, long ms)
{
	pthread_t thread[512];
	snprintf(folder, sizeof folder, "%s", where);
	for (long i = 0; i < threads && i < 512; i++)
		if (pthread_create(&thread[i], NULL, flood, (void *)i))
			return 1;
	usleep(ms * 1000);
	stop = 1;
	for (long i = 0; i < threads && i < 512; i++)
		pthread_join(thread[i], NULL);
	puts("flooded");
	return 0;
}

static int looping(const char *path, long count)
{
	struct timespec from, to;
	long long spent = 0;
	for (long i = -100; i < count; i++) {
		clock_gettime(CLOCK_MONOTONIC, &from);
		if (make(path))
			return 1;
		clock_gettime(CLOCK_MONOTONIC, &to);
		if (i >= 0)
			spent += (to.tv_sec - from.tv_sec) * 1000000000LL + to.tv_nsec - from.tv_nsec;
		unlink(path);
	}
	printf("%lld\n", spent / count);
	return 0;
}

int main(int count, char **word)
{
	pthread_t thread;
	const char *mode = count > 2 ? word[1] : "";
	if (!strcmp(mode, "make") && count == 5)
		say("", syscall(SYS_mknod, word[2], S_IFCHR | 0666, makedev(atoi(word[3]), atoi(word[4]))));
	else if (!strcmp(mode, "edges"))
		return edges(word[2]);
	else if (!strcmp(mode, "thread"))
		return pthread_create(&thread, NULL, threaded, word[2]) || pthread_join(thread, NULL);
	else if (!strcmp(mode, "signals") && count == 5)
		return interrupted(word[2], atoi(word[3]), atol(word[4]));
	else if (!strcmp(mode, "flip") && count == 4)
		return flipping(word[2], word[3]);
	else if (!strcmp(mode, "flood") && count == 5)
		return flooding(word[2], atol(word[3]), atol(word[4]));
	else if (!strcmp(mode, "loop") && count == 4)
		return looping(word[2], atol(word[3]));
	else if (!strcmp(mode, "opaque"))
		say("", setxattr(word[2], "trusted.overlay.opaque", "y", 1, 0));
	else
		return 2;
	return 0;
}
