/*
 * mount(2) as no shell can call it. Prints "ok" or the errno's name, one line for each call.
 *
 *   mount_call SOURCE TARGET TYPE FLAGS [DATA]   one call; "-" is a null pointer
 *   mount_call edges SOURCE TARGET TYPE          strings at the end of memory, without an end, and nowhere
 *   mount_call thread SOURCE TARGET TYPE         by a thread that does not lead its process
 *   mount_call signals SOURCE TARGET TYPE MS     while a signal comes every few milliseconds
 *   mount_call long COUNT TYPE                   source and target of 4094 bytes that are no text; prints nothing
 *   mount_call fsopen TYPE                       the first call of the new mount API
 *   mount_call again PATH OTHER                  what the new mount API makes of a mount that is there
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
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static void call(const char *what, const char *source, const char *target, const char *type, unsigned long flags,
		 const void *data)
{
	long result = syscall(SYS_mount, source, target, type, flags, data);
	printf("%s%s\n", what, result == 0 ? "ok" : strerrorname_np(errno));
	fflush(stdout);
}

static int edges(const char *source, const char *target, const char *type)
{
	char *text = before_the_end(strlen(target) + 1);
	strcpy(text, target);
	call("at the end: ", source, text, type, MS_RDONLY, NULL);
	umount(target);

	char *odd = before_the_end(64);
	memcpy(odd, "\xff\xfe,\x01=\x02,", 7);
	memset(odd + 7, ',', 57);
	call("odd bytes: ", source, target, type, 0, odd);
	char *commas = before_the_end(100);
	memset(commas, ',', 100);
	call("data that ends with memory: ", source, target, type, MS_RDONLY, commas);
	umount(target);

	char *endless = before_the_end(8192);
	memset(endless, 'a', 8192);
	call("endless target: ", source, endless, type, 0, NULL);
	call("endless type: ", source, target, endless, 0, NULL);
	call("endless source: ", endless, target, type, 0, NULL);
	call("endless data: ", source, target, type, 0, endless);
	void *nowhere = (void *)8;
	call("no data: ", source, target, type, 0, nowhere);
	call("no target: ", source, nowhere, type, 0, NULL);
	call("no type: ", source, target, nowhere, 0, NULL);
	call("no source: ", nowhere, target, type, 0, NULL);
	return 0;
}

static void say(const char *what, long result)
{
	printf("%s: %s\n", what, result >= 0 ? "ok" : strerrorname_np(errno));
}

static int again(const char *path, const char *other)
{
	struct {
		unsigned long long set, clear, propagation, users;
	} devices = { .clear = 4 }, read_only = { .set = 1 }, writable = { .clear = 1 };
	int tree, picked = syscall(SYS_fspick, AT_FDCWD, path, 0);
	say("fspick", picked);
	say("an option", syscall(SYS_fsconfig, picked, 0, "ro", NULL, 0));
	say("reconfigure", syscall(SYS_fsconfig, picked, 7, NULL, NULL, 0));
	close(picked);
	say("remount", mount(NULL, path, NULL, MS_REMOUNT | MS_RDONLY, NULL));
	say("devices", syscall(SYS_mount_setattr, AT_FDCWD, path, 0, &devices, sizeof devices));
	say("devices by remount", mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_NOSUID, NULL));
	say("read-only", syscall(SYS_mount_setattr, AT_FDCWD, path, 0, &read_only, sizeof read_only));
	say("writable", syscall(SYS_mount_setattr, AT_FDCWD, path, 0, &writable, sizeof writable));
	tree = syscall(SYS_open_tree, AT_FDCWD, path, 1);
	say("open_tree", tree);
	say("a copy", syscall(SYS_move_mount, tree, "", AT_FDCWD, other, 4));
	close(tree);
	say("its end", umount(other));
	say("a move", syscall(SYS_move_mount, AT_FDCWD, path, AT_FDCWD, other, 0));
	say("umount", umount(other));
	return 0;
}

static void nothing(int signal)
{
	(void)signal;
}

static int interrupted(char **word)
{
	struct sigaction action = { .sa_handler = nothing, .sa_flags = SA_RESTART };
	long period = atol(word[5]) * 1000;
	struct itimerval often = { { 0, period }, { 0, period } }, never = { { 0, 0 }, { 0, 0 } };
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	call("", word[2], word[3], word[4], 0, NULL);
	setitimer(ITIMER_REAL, &never, NULL);
	return 0;
}

static void *threaded(void *words)
{
	char **word = words;
	call("", word[2], word[3], word[4], 0, NULL);
	return NULL;
}

static int long_paths(int count, const char *type)
{
	char path[4095];
	memset(path, 0xff, sizeof path);
	// No component is longer than a name may be.
	for (size_t i = 0; i < sizeof path; i += 200)
		path[i] = '/';
	path[sizeof path - 1] = 0;
	while (count-- > 0)
		if (mount(path, path, type, 0, NULL) == 0)
			return 1;
	return 0;
}

int main(int count, char **word)
{
	pthread_t thread;
	if (count == 3 && !strcmp(word[1], "fsopen")) {
		puts(syscall(SYS_fsopen, word[2], 0) >= 0 ? "ok" : strerrorname_np(errno));
		return 0;
	}
	if (count == 4 && !strcmp(word[1], "long"))
		return long_paths(atoi(word[2]), word[3]);
	if (count == 4 && !strcmp(word[1], "again"))
		return again(word[2], word[3]);
	if (count == 6 && !strcmp(word[1], "signals"))
		return interrupted(word);
	if (count == 5 && !strcmp(word[1], "thread"))
		return pthread_create(&thread, NULL, threaded, word) || pthread_join(thread, NULL);
	if (count == 5 && !strcmp(word[1], "edges"))
		return edges(word[2], word[3], word[4]);
	if (count != 5 && count != 6)
		return 2;
	const char *null[] = { word[1], word[2], word[3], count == 6 ? word[5] : "-" };
	for (int i = 0; i < 4; i++)
		if (!strcmp(null[i], "-"))
			null[i] = NULL;
	call("", null[0], null[1], null[2], strtoul(word[4], NULL, 0), null[3]);
	return 0;
}
