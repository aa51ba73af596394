/*
 * mknod(2), mknodat(2) and setxattr(2) as no shell can call them. Prints "ok" or the errno's name, one line for each call.
 *
 *   node_call make PATH MAJOR MINOR     mknod
 *   node_call edges FOLDER              strings at the end of memory, without an end, and nowhere; odd descriptors
 *   node_call thread PATH               by a thread that does not lead its process
 *   node_call signals PATH COUNT US     makes and removes it while a signal comes every so many microseconds; an
 *                                       answer that a signal takes away in the last microsecond is EEXIST later
 *   node_call flood FOLDER THREADS MS   makes and removes nodes in many threads
 *   node_call opaque PATH               setxattr of trusted.overlay.opaque
 *   node_call opaque_at FOLDER          setxattrat of it: by folder and path, by a link, of a descriptor, with odd arguments
 *   node_call loop PATH COUNT           prints how many nanoseconds a mknod takes, its removal not counted
 *   node_call changes FOLDER            one thread that changes its ids or its folder before each of its calls
 *   node_call table FOLDER WHO          all calls but mount in FOLDER; WHO is leader, thread, chroot, or nested (a user namespace of its own)
 */
#include "hostile.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <stdint.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
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

static volatile int stop;
static char folder[4000];

static void nothing(int signal)
{
	(void)signal;
}

static int interrupted(const char *path, int count, long us)
{
	struct sigaction action = { .sa_handler = nothing, .sa_flags = SA_RESTART };
	struct itimerval often = { { 0, us }, { 0, us } };
	int failed = 0, existed = 0;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < count; i++) {
		if (make(path)) {
			if (errno == EEXIST) {
				existed++;
			} else {
				say("", -1);
				failed++;
			}
		}
		if (unlink(path)) {
			say("not there ", -1);
			failed++;
		}
	}
	printf("failed: %d\nexisted: %d\n", failed, existed);
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

static void may(int makes)
{
	struct __user_cap_header_struct who = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2];
	syscall(SYS_capget, &who, sets);
	sets[0].effective &= ~(1u << CAP_MKNOD);
	sets[0].effective |= (unsigned)makes << CAP_MKNOD;
	syscall(SYS_capset, &who, sets);
}

static int changing(const char *where)
{
	char path[4200];
	int top = open("/", O_PATH | O_DIRECTORY), here = open(where, O_PATH | O_DIRECTORY);
	gid_t others[] = { 44 };
#define HERE(name) (snprintf(path, sizeof path, "%s/" name, where), path)
	if (chdir(where) || mkdir("sub", 0755) || mkdir("groups", 0) || chmod("groups", 0775) || chown("groups", 5, 44))
		return 1;
	umask(022);
	say("first: ", make(HERE("first")));
	say("same: ", make(HERE("same")));
	umask(077);
	say("mask: ", make(HERE("mask")));
	umask(022);
	say("no mask: ", make(HERE("no-mask")));
	may(0);
	say("no capability: ", make(HERE("never")));
	may(1);
	say("capability: ", make(HERE("capability")));
	setfsgid(33);
	say("group: ", make(HERE("group")));
	setfsgid(0);
	setfsuid(1000);
	may(1);
	say("user: ", make(HERE("groups/never")));
	if (setgroups(1, others))
		return 1;
	say("groups: ", make(HERE("groups/user")));
	setfsuid(0);
	say("relative: ", make("relative"));
	if (chdir("sub"))
		return 1;
	say("another folder: ", make("relative"));
	if (chroot("."))
		return 1;
	say("root: ", make("/root"));
	if (fchdir(top) || chroot("."))
		return 1;
	say("the old root: ", make(HERE("old-root")));
	say("by a folder: ", make_at(here, "by-folder", NULL_DEVICE));
	if (unshare(CLONE_NEWUSER))
		return 1;
	say("nested: ", make(HERE("never")));
	return 0;
}

static int mark(const char *path, const char *name)
{
	return setxattr(path, name, "y", 1, 0);
}

/* Of the calling thread, by the newest of the calls. */
static int nice_by_attributes(int nice)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t times[3];
	} attributes = { .size = sizeof attributes, .nice = nice };
	return syscall(SYS_sched_setattr, 0, &attributes, 0);
}

/* Every case once, in the folder that we are in, which has this name. Leaves nothing behind. */
static void *table(void *where)
{
	char path[4096];
	int sub = mkdir("sub", 0755) ? -1 : open("sub", O_RDONLY | O_DIRECTORY);
	snprintf(path, sizeof path, "%s/node", (char *)where);
	say("mknod: ", make("node"));
	say("mknod of what is there: ", make("sub"));
	unlink("node");
	say("mknod by an absolute path: ", make(path));
	unlink("node");
	say("mknod in a folder: ", make_at(sub, "node", NULL_DEVICE));
	unlink("sub/node");
	say("mknod of memory: ", make_at(AT_FDCWD, "node", makedev(1, 1)));
	say("mknod nowhere: ", make((char *)8));
	say("mknod of a whiteout: ", make_at(AT_FDCWD, "node", 0));
	unlink("node");
	say("setxattr: ", mark("sub", "trusted.overlay.opaque"));
	say("lsetxattr: ", lsetxattr("sub", "trusted.overlay.opaque", "y", 1, 0));
	say("fsetxattr: ", fsetxattr(sub, "trusted.overlay.opaque", "y", 1, 0));
	say("setxattr of another: ", mark("sub", "trusted.other"));
	say("setxattr nowhere: ", mark("sub", (char *)8));
	say("setpriority: ", setpriority(PRIO_PROCESS, 0, -5));
	setpriority(PRIO_PROCESS, 0, 0);
	say("setpriority beyond: ", setpriority(PRIO_PROCESS, 0, -15));
	say("setpriority of nothing: ", setpriority(9, 0, -5));
	say("sched_setattr: ", nice_by_attributes(-5));
	setpriority(PRIO_PROCESS, 0, 0);
	say("sched_setscheduler beyond: ", sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ 99 }));
	say("sched_setscheduler of nothing: ", sched_setscheduler(0, 77, &(struct sched_param){ 1 }));
	close(sub);
	rmdir("sub");

	struct sysinfo info;
	cpu_set_t set;
	sysinfo(&info);
	printf("sysinfo: %llu\n", (unsigned long long)info.totalram * info.mem_unit >> 20);
	printf("processors: %d\n", sched_getaffinity(0, sizeof set, &set) ? -1 : CPU_COUNT(&set));
	fflush(stdout);
	return NULL;
}

static int put(const char *path, const char *text)
{
	int file = open(path, O_WRONLY), length = strlen(text);
	return file < 0 || write(file, text, length) != length || close(file);
}

static int tabled(char *where, const char *who)
{
	pthread_t thread;
	if (chdir(where))
		return 1;
	if (!strcmp(who, "thread"))
		return pthread_create(&thread, NULL, table, where) || pthread_join(thread, NULL);
	if (!strcmp(who, "chroot") && (chroot(where) || !(where = "")))
		return 1;
	if (!strcmp(who, "nested") && (unshare(CLONE_NEWUSER) || put("/proc/self/setgroups", "deny") ||
				       put("/proc/self/uid_map", "0 0 1") || put("/proc/self/gid_map", "0 0 1")))
		return 1;
	table(where);
	return 0;
}

struct xattr_at { /* struct xattr_args of Linux 6.13 */
	unsigned long long value;
	unsigned size, flags;
};

static int opaque_at(int folder, const char *path, unsigned flags, const char *name, struct xattr_at *args, size_t size)
{
	return syscall(463, folder, path, flags, name, args, size);
}

static int opaques_at(const char *where)
{
	const char *name = "trusted.overlay.opaque";
	struct xattr_at args = { (unsigned long)"y", 1, 0 }, other = { (unsigned long)"x", 1, 0 };
	struct xattr_at longer = { (unsigned long)"yy", 2, 0 }, nowhere = { 8, 1, 0 }, create = { (unsigned long)"y", 1, XATTR_CREATE };
	int at = open(where, O_RDONLY | O_DIRECTORY), path = open(where, O_PATH), file;
	if (mkdirat(at, "d", 0755) || mkdirat(at, "e", 0755) || symlinkat("e", at, "l") || chdir(where))
		return 1;
	file = openat(at, "f", O_CREAT | O_RDWR, 0644);
	say("by a folder: ", opaque_at(at, "d", 0, name, &args, sizeof args));
	say("again: ", opaque_at(path, "d", 0, name, &create, sizeof args));
	say("by a link: ", opaque_at(AT_FDCWD, "l", 0, name, &args, sizeof args));
	say("a link: ", opaque_at(AT_FDCWD, "l", AT_SYMLINK_NOFOLLOW, name, &args, sizeof args));
	say("a descriptor: ", opaque_at(file, "", AT_EMPTY_PATH, name, &args, sizeof args));
	say("no path: ", opaque_at(file, NULL, AT_EMPTY_PATH, name, &args, sizeof args));
	say("the folder: ", opaque_at(AT_FDCWD, "", AT_EMPTY_PATH, name, &args, sizeof args));
	say("empty: ", opaque_at(at, "", 0, name, &args, sizeof args));
	say("closed: ", opaque_at(999, "d", 0, name, &args, sizeof args));
	say("other: ", opaque_at(at, "d", 0, name, &other, sizeof args));
	say("longer: ", opaque_at(at, "d", 0, name, &longer, sizeof args));
	say("nowhere: ", opaque_at(at, "d", 0, name, &nowhere, sizeof args));
	say("no structure: ", opaque_at(at, "d", 0, name, (void *)8, sizeof args));
	say("a short one: ", opaque_at(at, "d", 0, name, &args, 8));
	say("a flag: ", opaque_at(at, "d", 1, name, &args, sizeof args));
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
	else if (!strcmp(mode, "flood") && count == 5)
		return flooding(word[2], atol(word[3]), atol(word[4]));
	else if (!strcmp(mode, "loop") && count == 4)
		return looping(word[2], atol(word[3]));
	else if (!strcmp(mode, "changes"))
		return changing(word[2]);
	else if (!strcmp(mode, "table") && count == 4)
		return tabled(word[2], word[3]);
	else if (!strcmp(mode, "opaque_at"))
		return opaques_at(word[2]);
	else if (!strcmp(mode, "opaque"))
		say("", setxattr(word[2], "trusted.overlay.opaque", "y", 1, 0));
	else
		return 2;
	return 0;
}
