/*
 * What a hostile container does to calls that are answered. Says what became of it, one line for each attempt.
 *
 *   hostile flip FOLDER OUTSIDE IMAGE MS   paths that change their meaning all the time: folder, link to OUTSIDE, device, image
 *   hostile change FOLDER FILE IMAGE MS    arguments in memory that change while they are read
 *   hostile out OUTSIDE IMAGE              every way that could lead out of the root
 *   hostile bytes FOLDER IMAGE             mount options of odd bytes
 *   hostile marks FOLDER                   setxattr with strings and addresses that are none
 *   hostile flood THREADS MS               every call, in many threads, in the current folder
 *   hostile peek MS                        looks into all processes that appear
 *
 * Called by a name that begins with "fuse-" it is a helper that does not do what helpers do.
 */
#include "hostile.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>

#define OPAQUE "trusted.overlay.opaque"
#define EXT4 0xef53

/* Looks like a helper that was given a device. */
const volatile char library[] = "libfuse3.so";

static volatile int stop;

static int make(const char *path)
{
	return syscall(SYS_mknod, path, S_IFCHR | 0666, makedev(1, 3));
}

static int mark(const char *path)
{
	return setxattr(path, OPAQUE, "y", 1, 0);
}

static void say(const char *what, int result)
{
	printf("%s: %s\n", what, result == 0 ? "ok" : strerrorname_np(errno));
	fflush(stdout);
}

static long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static char name[3][4096];

/* Exchanges three names for ever. */
static void *flip(void *unused)
{
	(void)unused;
	for (int i = 0; !stop; i++)
		syscall(SYS_renameat2, AT_FDCWD, name[i % 3], AT_FDCWD, name[(i + 1) % 3], RENAME_EXCHANGE);
	return NULL;
}

static int flipping(const char *folder, const char *outside, const char *image, long ms)
{
	pthread_t thread;
	char node[4200], target[4200];
	int made = 0, marked = 0, mounted = 0;
	for (int i = 0; i < 3; i++)
		snprintf(name[i], sizeof name[i], "%s/%c", folder, 'a' + i);
	snprintf(node, sizeof node, "%s/node", name[0]);
	snprintf(target, sizeof target, "%s/target", folder);
	if (mkdir(name[0], 0755) || symlink(outside, name[1]) || mkdir(target, 0755) || make(name[2]) ||
	    pthread_create(&thread, NULL, flip, NULL))
		return 1;
	/* The names are folder, link and device in turn, and then folder, link and image. */
	for (int round = 0; round < 2; round++) {
		for (long end = now() + ms / 2; now() < end || (round && now() < end + 20 * ms && !(made && marked && mounted));) {
			made += make(node) == 0;
			unlink(node);
			marked += mark(name[0]) == 0;
			if (syscall(SYS_mount, image, name[0], "ext4", MS_RDONLY, NULL) == 0) {
				mounted++;
				/* Whichever name has it now. */
				for (int i = 0; i < 9; i++)
					umount2(name[i % 3], MNT_DETACH | UMOUNT_NOFOLLOW);
			}
			if (syscall(SYS_mount, name[2], target, "ext4", MS_RDONLY, NULL) == 0)
				umount2(target, MNT_DETACH);
		}
		stop = 1;
		pthread_join(thread, NULL);
		stop = 0;
		for (int i = 0; i < 3; i++) {
			struct stat status;
			while (umount2(name[i], MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
				;
			if (lstat(name[i], &status) == 0 && S_ISCHR(status.st_mode) && round == 0) {
				unlink(name[i]);
				if (symlink(image, name[i]))
					return 1;
			}
		}
		if (round == 0 && pthread_create(&thread, NULL, flip, NULL))
			return 1;
	}
	printf("made %d marked %d mounted %d\n", made > 0, marked > 0, mounted > 0);
	return 0;
}

/* Eight bytes that have one meaning or another. */
static _Alignas(8) char type[8], value[8];
static char path[64], attribute[32], options[32];

static void *change(void *unused)
{
	(void)unused;
	for (int i = 0; !stop; i++) {
		memcpy(type, i & 1 ? "ext4\0\0\0" : "debugfs", 8);
		memcpy(value, i & 1 ? "y" : "n", 1);
		memcpy(attribute + 16, i & 1 ? "opaque" : "origin", 6);
		memcpy(path + strlen(path) - 6, i & 1 ? "ab/one" : "../two", 6);
		strcpy(options, i & 1 ? "noload" : "errors=panic");
	}
	return NULL;
}

static int changing(const char *folder, const char *file, const char *image, long ms)
{
	pthread_t thread;
	struct statfs status;
	char target[4096];
	int made = 0, marked = 0, mounted = 0, gained = 0;
	snprintf(path, sizeof path, "%s/ab/one", folder);
	snprintf(target, sizeof target, "%s/ab/target", folder);
	strcpy(attribute, OPAQUE);
	strcpy(options, "noload");
	snprintf(name[0], sizeof name[0], "%s/ab", folder);
	if (mkdir(name[0], 0755) || mkdir(target, 0755) || close(open(file, O_CREAT | O_RDWR, 0600)) ||
	    pthread_create(&thread, NULL, change, NULL))
		return 1;
	for (long end = now() + ms; now() < end || (now() < end + 20 * ms && !(made && marked));) {
		made += syscall(SYS_mknod, path, S_IFCHR | 0666, makedev(1, 3)) == 0;
		marked += syscall(SYS_setxattr, file, attribute, value, 1, 0) == 0;
		if (syscall(SYS_mount, image, target, type, MS_RDONLY, options) == 0) {
			mounted++;
			gained += statfs(target, &status) || status.f_type != EXT4;
			umount2(target, MNT_DETACH);
		}
		for (const char *const *p = (const char *[]){ "ab/one", "../two", NULL }; *p; p++) {
			char node[4200];
			snprintf(node, sizeof node, "%s/%s", folder, *p);
			unlink(node);
		}
	}
	stop = 1;
	pthread_join(thread, NULL);
	printf("made %d marked %d mounted %d gained %d\n", made > 0, marked > 0, mounted > 0, gained);
	return 0;
}

static int ways_out(const char *outside, const char *image)
{
	const char *const ways[] = { "",		  "../../../../../../../..", "/proc/1/root",
				     "/proc/self/root",	  "/proc/thread-self/root",  "/proc/1/root/../..",
				     "/proc/1/cwd/../..", "/proc/self/cwd/../../..", "//..//proc//1//root" };
	char where[8200];
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
		snprintf(where, sizeof where, "%s%s/node", ways[i], outside);
		say("mknod", make(where));
		snprintf(where, sizeof where, "%s%s", ways[i], outside);
		say("setxattr", mark(where));
		say("mount there", syscall(SYS_mount, image, where, "ext4", 0, NULL));
		snprintf(where, sizeof where, "%s%s/image", ways[i], outside);
		say("mount that", syscall(SYS_mount, where, ".", "ext4", 0, NULL));
	}
	return 0;
}

/* A page of options, and another page behind it. */
static char *page(char filling, const char *text, size_t length, size_t at)
{
	char *pages = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(pages, filling, 2 * 4096);
	memcpy(pages + at, text, length);
	return pages;
}

static int odd_bytes(const char *folder, const char *image)
{
	const struct {
		const char *what;
		char *data;
	} all[] = {
		{ "commas without an end", page(',', "", 0, 0) },
		{ "no words", page(0, "=,=x,,=,", 8, 0) },
		{ "a second string", page(0, "noload\0errors=panic", 19, 0) },
		{ "a late option", page(',', "errors=panic", 13, 4000) },
		{ "behind the page", page(',', "errors=panic", 13, 4096) },
		{ "cut off by the page", page(',', "errors=panic", 13, 4089) },
		{ "the last one counts", page(0, "errors=continue,errors=panic", 28, 0) },
		{ "a value with equal signs", page(0, "errors=panic=x", 14, 0) },
		{ "no text", page(0, "\xff\xfe=\x80", 4, 0) },
		{ "a value that is no text", page(0, "data=\xff\xfe", 7, 0) },
		{ "lines", page(0, "noload\nerrors=panic", 19, 0) },
		{ "a long word", page('a', "", 0, 0) },
		{ "a long value", page('a', "data=", 5, 0) },
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		say(all[i].what, syscall(SYS_mount, image, folder, "ext4", MS_RDONLY, all[i].data));
		umount2(folder, MNT_DETACH);
	}
	return 0;
}

static int odd_marks(const char *folder)
{
	char *endless = memset(before_the_end(8192), 'a', 8192), *edge = before_the_end(sizeof OPAQUE);
	void *nowhere = (void *)8;
	strcpy(edge, OPAQUE);
	say("at the end", syscall(SYS_setxattr, folder, edge, "y", 1, 0));
	say("endless path", syscall(SYS_setxattr, endless, OPAQUE, "y", 1, 0));
	say("endless name", syscall(SYS_setxattr, folder, endless, "y", 1, 0));
	say("cut off name", syscall(SYS_setxattr, folder, memset(before_the_end(8), 'a', 8), "y", 1, 0));
	say("no path", syscall(SYS_setxattr, nowhere, OPAQUE, "y", 1, 0));
	say("no name", syscall(SYS_setxattr, folder, nowhere, "y", 1, 0));
	say("no value", syscall(SYS_setxattr, folder, OPAQUE, nowhere, 1, 0));
	say("null", syscall(SYS_setxattr, NULL, NULL, NULL, 1, 0));
	say("empty path", syscall(SYS_setxattr, "", OPAQUE, "y", 1, 0));
	say("odd flags", syscall(SYS_setxattr, folder, OPAQUE, "y", 1, 8));
	say("a huge size", syscall(SYS_setxattr, folder, OPAQUE, "y", 1UL << 40, 0));
	say("a huge size that looks small", syscall(SYS_setxattr, folder, "trusted.other", "y", 1UL << 32 | 1, 0));
	say("a device", mark("/dev/null"));
	return 0;
}

static void *flood(void *number)
{
	char node[64], folder[64];
	struct sysinfo numbers;
	struct sched_param param = { .sched_priority = 1 };
	snprintf(node, sizeof node, "node%ld", (long)number);
	snprintf(folder, sizeof folder, "folder%ld", (long)number);
	mkdir(folder, 0755);
	while (!stop) {
		make(node);
		unlink(node);
		mark(folder);
		sysinfo(&numbers);
		sched_setscheduler(0, SCHED_FIFO, &param);
		sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){ 0 });
		setpriority(PRIO_PROCESS, 0, -5);
		setpriority(PRIO_PROCESS, 0, 0);
		syscall(SYS_fsopen, "ext4", 0);
		if ((long)number % 10 == 0) {
			if (syscall(SYS_mount, "/run/i/squashfs", folder, "ext4", MS_RDONLY, ",errors=continue,x") == 0)
				umount2(folder, MNT_DETACH);
			if (syscall(SYS_mount, "/run/i/ext4", folder, "ext4", MS_RDONLY, NULL) == 0)
				umount2(folder, MNT_DETACH);
		}
	}
	return NULL;
}

static int flooding(long threads, long ms)
{
	pthread_t thread[512];
	puts("begun");
	fflush(stdout);
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

/* Whether something of a process can be opened. */
static void peek_at(const char *process, const char *comm, const char *what)
{
	char file[600], link[4096] = "";
	snprintf(file, sizeof file, "/proc/%s/%s", process, what);
	int fd = open(file, O_PATH | O_NONBLOCK);
	if (fd >= 0 && strcmp(what, "stat") && readlink(file, link, sizeof link - 1) < 0) {
		/* memory: O_PATH says nothing */
		close(fd);
		fd = open(file, O_RDONLY);
	}
	if (fd >= 0) {
		printf("%s %s %s\n", comm, what, link);
		close(fd);
	}
}

static int peeking(long ms)
{
	for (long end = now() + ms; now() < end;) {
		DIR *processes = opendir("/proc");
		for (struct dirent *one; processes && (one = readdir(processes));) {
			char file[600], comm[64] = "", link[300];
			if (!isdigit(*one->d_name) || atoi(one->d_name) == getpid())
				continue;
			snprintf(file, sizeof file, "/proc/%s/comm", one->d_name);
			FILE *text = fopen(file, "r");
			if (!text)
				continue;
			if (fscanf(text, "%63s", comm) != 1)
				*comm = 0;
			fclose(text);
			if (strcmp(comm, "ambit-broker") && strncmp(comm, "fuse-", 5))
				continue;
			for (const char *const *what = (const char *[]){ "stat", "root", "cwd", "exe", "mem", "environ", NULL }; *what;
			     what++)
				peek_at(one->d_name, comm, *what);
			for (int fd = 0; fd < 40; fd++) {
				snprintf(link, sizeof link, "fd/%d", fd);
				peek_at(one->d_name, comm, link);
			}
		}
		if (processes)
			closedir(processes);
		fflush(stdout);
	}
	return 0;
}

/* A helper: NAME SOURCE /dev/fd/N [-o OPTIONS]. */
static int serve(const char *how, const char *place)
{
	char junk[8192];
	int device = -1;
	sscanf(place, "/dev/fd/%d", &device);
	memset(junk, 0x5a, sizeof junk);
	if (!strcmp(how, "fuse-exit"))
		return 0;
	if (!strcmp(how, "fuse-die"))
		return kill(getpid(), SIGKILL);
	if (!strcmp(how, "fuse-flood"))
		for (;;)
			(void)!write(1, junk, sizeof junk);
	if (!strcmp(how, "fuse-fork") && fork())
		return 0;
	if (!strcmp(how, "fuse-swarm")) {
		for (int i = 0; i < 40; i++)
			if (fork() == 0) {
				setsid();
				if (fork() == 0)
					for (;;)
						pause();
				return 0;
			}
		return 3;
	}
	if (!strcmp(how, "fuse-junk"))
		for (;;) {
			(void)!read(device, junk, sizeof junk);
			*(uint32_t *)(void *)junk = 100;
			(void)!write(device, junk, 100);
			(void)!write(device, junk, 16);
		}
	setsid();
	for (;;)
		pause();
}

int main(int count, char **word)
{
	const char *base = strrchr(word[0], '/'), *mode = count > 1 ? word[1] : "";
	base = base ? base + 1 : word[0];
	if (!strncmp(base, "fuse-", 5) && count > 2)
		return serve(base, word[2]);
	if (!strcmp(mode, "flip") && count == 6)
		return flipping(word[2], word[3], word[4], atol(word[5]));
	if (!strcmp(mode, "change") && count == 6)
		return changing(word[2], word[3], word[4], atol(word[5]));
	if (!strcmp(mode, "out") && count == 4)
		return ways_out(word[2], word[3]);
	if (!strcmp(mode, "bytes") && count == 4)
		return odd_bytes(word[2], word[3]);
	if (!strcmp(mode, "marks") && count == 3)
		return odd_marks(word[2]);
	if (!strcmp(mode, "flood") && count == 4)
		return flooding(atol(word[2]), atol(word[3]));
	if (!strcmp(mode, "peek") && count == 3)
		return peeking(atol(word[2]));
	return 2;
}
