/*
 * bpf(2) for device policies, as container engines call it. Prints "ok" or the errno's name, one line for each call.
 *
 *   bpf_call deny CGROUP MAJOR MINOR [FLAGS]   loads a program that refuses a device, and attaches it (with ALLOW_MULTI)
 *   bpf_call thread CGROUP MAJOR MINOR         the same by a thread that does not lead its process
 *   bpf_call replace CGROUP MAJOR MINOR        puts another one in the place of the one that is attached
 *   bpf_call clear CGROUP                      detaches all, found by their numbers
 *   bpf_call load                              loads one
 *   bpf_call edges CGROUP                      what is wrong, and what is not granted
 *   bpf_call signals CGROUP COUNT MS           loads, attaches and detaches while a signal comes every few milliseconds
 *   bpf_call flip CGROUP OTHER MAJOR MINOR     a second thread exchanges the descriptors of two control groups
 *   bpf_call open ID                           a program by its number
 *   bpf_call threads                           can the kernel tell whose descriptors a thread has?
 */
#include "hostile.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

enum { LOAD = 5, ATTACH = 8, DETACH = 9, BY_ID = 13, INFO = 15, QUERY = 16, LINK = 28, DEVICE_PROGRAM = 15, DEVICE = 6 };
enum { OVERRIDE = 1, MULTI = 2, REPLACE = 4 };

struct insn {
	uint8_t code, registers;
	int16_t offset;
	int32_t immediate;
};

union attribute {
	struct {
		uint32_t type, count;
		uint64_t insns, license;
		uint32_t log_level, log_size;
		uint64_t log;
		uint32_t version, flags;
		char name[16];
		uint32_t interface, expected, btf;
	} load;
	struct {
		uint32_t target, program, type, flags, replaced;
	} attach;
	struct {
		uint32_t target, type, query_flags, flags;
		uint64_t ids;
		uint32_t count;
	} query;
	uint32_t id;
	char page[8192];
} __attribute__((aligned(8)));

static int call_sized(int command, void *attribute, unsigned size)
{
	return syscall(SYS_bpf, command, attribute, size);
}

static int call(int command, union attribute *attribute)
{
	return call_sized(command, attribute, 120);
}

static void say(const char *what, int result)
{
	printf("%s%s\n", what, result >= 0 ? "ok" : strerrorname_np(errno));
	fflush(stdout);
}

static uint64_t address(const void *pointer)
{
	return (uintptr_t)pointer;
}

static int load(const struct insn *insns, unsigned count, char *log, unsigned size)
{
	union attribute a = { 0 };
	a.load.type = DEVICE_PROGRAM;
	a.load.count = count;
	a.load.insns = address(insns);
	a.load.license = address("GPL");
	a.load.log = address(log);
	a.load.log_size = size;
	a.load.log_level = log != NULL;
	strcpy(a.load.name, "policy");
	return call(LOAD, &a);
}

static int load_refusal(int major, int minor)
{
	const struct insn insns[] = {
		{ 0x61, 0x12, 4, 0 },         /* r2 = major */
		{ 0x61, 0x13, 8, 0 },         /* r3 = minor */
		{ 0xb7, 0x00, 0, 1 },         /* r0 = 1 */
		{ 0x55, 0x02, 2, major },     /* if r2 != major: exit */
		{ 0x55, 0x03, 1, minor },     /* if r3 != minor: exit */
		{ 0xb7, 0x00, 0, 0 },         /* r0 = 0 */
		{ 0x95, 0x00, 0, 0 },         /* exit */
	};
	return load(insns, sizeof insns / sizeof *insns, NULL, 0);
}

static int attach(int target, int program, unsigned flags, int replaced)
{
	union attribute a = { 0 };
	a.attach.target = target;
	a.attach.program = program;
	a.attach.type = DEVICE;
	a.attach.flags = flags;
	a.attach.replaced = replaced;
	return call(ATTACH, &a);
}

static int detach(int target, int program)
{
	union attribute a = { 0 };
	a.attach.target = target;
	a.attach.program = program;
	a.attach.type = DEVICE;
	return call(DETACH, &a);
}

static int by_id(uint32_t id)
{
	union attribute a = { 0 };
	a.id = id;
	return call(BY_ID, &a);
}

static int query(int target, uint32_t *ids, unsigned *count, unsigned *flags)
{
	union attribute a = { 0 };
	a.query.target = target;
	a.query.type = DEVICE;
	a.query.ids = address(ids);
	a.query.count = *count;
	int result = call(QUERY, &a);
	*count = a.query.count;
	*flags = a.query.flags;
	return result;
}

static int group(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		perror(path);
		exit(3);
	}
	return fd;
}

static char **words;

static void *deny(void *flags)
{
	int program = load_refusal(atoi(words[3]), atoi(words[4]));
	say("load: ", program);
	if (program >= 0) {
		if (fcntl(program, F_GETFD) != FD_CLOEXEC)
			puts("not close-on-exec");
		say("attach: ", attach(group(words[2]), program, (intptr_t)flags, 0));
	}
	return NULL;
}

static int replace(const char *path, int major, int minor)
{
	uint32_t ids[64];
	unsigned count = 64, flags;
	int target = group(path), program = load_refusal(major, minor);
	say("query: ", query(target, ids, &count, &flags));
	printf("%u, flags %u\n", count, flags);
	int old = by_id(ids[0]);
	say("open: ", old);
	say("replace: ", attach(target, program, MULTI | REPLACE, old));
	return 0;
}

static int clear(const char *path)
{
	uint32_t ids[64];
	unsigned count = 64, flags;
	int target = group(path), result = query(target, ids, &count, &flags);
	say("query: ", result);
	for (unsigned i = 0; result == 0 && i < count; i++)
		say("detach: ", detach(target, by_id(ids[i])));
	return 0;
}

/* Its type and how many maps it has, if it is a program. */
static int kind(int program)
{
	uint32_t info[58] = { 0 };
	union attribute a = { 0 };
	a.attach.target = program;
	a.attach.program = sizeof info;
	a.query.flags = 0;
	memcpy(a.page + 8, &(uint64_t){ address(info) }, 8);
	int result = call(INFO, &a);
	return result == 0 && (info[0] != DEVICE_PROGRAM || info[13]) ? (errno = EPROTO, -1) : result;
}

#define WRONG(what, command, ...)                                                                                      \
	do {                                                                                                           \
		union attribute a = { 0 };                                                                             \
		__VA_ARGS__;                                                                                           \
		say(what ": ", call(command, &a));                                                                     \
	} while (0)

static int edges(const char *path)
{
	static const struct insn harmless[] = { { 0xb7, 0, 0, 1 }, { 0x95, 0, 0, 0 } };
	static const struct insn wrong[] = { { 0xbf, 0x50, 0, 0 }, { 0x95, 0, 0, 0 } };
	static const struct insn map[] = { { 0x18, 0x11, 0, 3 }, { 0 }, { 0xb7, 0, 0, 1 }, { 0x95, 0, 0, 0 } };
	static const struct insn helper[] = { { 0x85, 0, 0, 5 }, { 0x95, 0, 0, 0 } };
	static const struct insn function[] = { { 0x85, 0x10, 0, 1 }, { 0x95, 0, 0, 0 }, { 0xb7, 0, 0, 1 }, { 0x95, 0, 0, 0 } };
	static union attribute whole;
	static struct insn many[4097];
	static char log[8192];
	int target = group(path), program = load(harmless, 2, NULL, 0), file = open("/dev/null", O_RDONLY);

	say("of no size: ", call_sized(LOAD, &whole, 0));
	say("no attribute: ", call_sized(LOAD, NULL, 72));
	say("nowhere: ", call_sized(LOAD, (void *)8, 72));
	char *cut = before_the_end(60);
	memset(cut, 0, 60);
	say("cut off: ", call_sized(LOAD, cut, 72));
	say("a huge attribute: ", call_sized(LOAD, &whole, 4097));
	say("an endless one: ", call_sized(LOAD, &whole, -1));
	whole.page[4000] = 1;
	say("an unknown field: ", call_sized(LOAD, &whole, 4096));

#define PROGRAM(insns_, count_)                                                                                        \
	a.load.type = DEVICE_PROGRAM, a.load.insns = address(insns_), a.load.count = count_, a.load.license = address("GPL")
	WRONG("no instructions", LOAD, PROGRAM(harmless, 0));
	WRONG("too many", LOAD, PROGRAM(many, 4097));
	WRONG("instructions nowhere", LOAD, PROGRAM((void *)8, 2));
	WRONG("no license", LOAD, PROGRAM(harmless, 2); a.load.license = 8);
	WRONG("another type", LOAD, PROGRAM(harmless, 2); a.load.type = 2);
	WRONG("for packets", LOAD, PROGRAM(harmless, 2); a.load.type = 8);
	WRONG("types of a program", LOAD, PROGRAM(harmless, 2); a.load.btf = 3);
	WRONG("a network interface", LOAD, PROGRAM(harmless, 2); a.load.interface = 1);
	WRONG("flags", LOAD, PROGRAM(harmless, 2); a.load.flags = 1 << 4);
	WRONG("a map", LOAD, PROGRAM(map, 4));
	WRONG("a helper", LOAD, PROGRAM(helper, 2));
	WRONG("a function", LOAD, PROGRAM(function, 4));

	say("what the verifier refuses: ", load(wrong, 2, log, sizeof log));
	printf("its log: %d\n", strstr(log, "R5") != NULL);
	say("with a log: ", load(harmless, 2, log, sizeof log));
	printf("its log: %d\n", strlen(log) > 0);
	say("a log nowhere: ", load(harmless, 2, (char *)8, 4096));
	say("a log without size: ", load(harmless, 2, log, 0));

	say("no such program: ", attach(target, 999, MULTI, 0));
	say("a file as a program: ", attach(target, file, MULTI, 0));
	say("no such target: ", attach(-1, program, MULTI, 0));
	say("a file as target: ", attach(file, program, MULTI, 0));
	say("a folder as target: ", attach(group("/usr"), program, MULTI, 0));
	say("both kinds: ", attach(target, program, MULTI | OVERRIDE, 0));
	say("unknown flags: ", attach(target, program, 1 << 30, 0));
	say("replace nothing: ", attach(target, program, MULTI | REPLACE, 999));
	say("of another hook: ", ({ union attribute a = { .attach = { target, program, 0, MULTI, 0 } }; call(ATTACH, &a); }));
	say("by a link: ", ({ union attribute a = { .attach = { program, target, DEVICE, 0, 0 } }; call(LINK, &a); }));
	say("of another hook nowhere: ", ({ union attribute a = { .attach = { -1, program, 0, REPLACE, 0 } }; call(ATTACH, &a); }));
	say("what it is: ", kind(program));
	say("what a file is: ", kind(file));
	say("not attached: ", detach(target, program));
	say("attach: ", attach(target, program, MULTI, 0));
	say("twice: ", attach(target, program, MULTI, 0));
	say("with other flags: ", attach(target, program, OVERRIDE, 0));
	uint32_t id = 0;
	unsigned count = 0, flags;
	say("how many: ", query(target, NULL, &count, &flags));
	printf("%u\n", count);
	count = 1;
	say("numbers nowhere: ", query(target, (uint32_t *)8, &count, &flags));
	say("numbers: ", query(target, &id, &count, &flags));
	say("another number: ", by_id(id + 1000000));
	say("what it is: ", kind(by_id(id)));
	say("twice by its number: ", attach(target, by_id(id), MULTI, 0));
	say("detach: ", detach(target, program));
	say("again: ", detach(target, program));
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
	int target = group(path), failed = 0, highest = dup(target);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < count; i++) {
		int program = load_refusal(1, 200 + i);
		if (program < 0 || attach(target, program, MULTI, 0) || detach(target, program)) {
			say("", -1);
			failed++;
		}
		close(program);
	}
	/* No descriptor was added for a call that was made again. */
	printf("failed: %d, left over: %d\n", failed, dup(target) - highest - 1);
	return 0;
}

static volatile int stop;
static int one, other, shown;

static void *exchange(void *unused)
{
	(void)unused;
	while (!stop) {
		dup2(one, shown);
		dup2(other, shown);
	}
	return NULL;
}

static int flipping(int major, int minor)
{
	pthread_t thread;
	int program = load_refusal(major, minor), attached = 0;
	shown = dup(one);
	if (program < 0 || pthread_create(&thread, NULL, exchange, NULL))
		return 1;
	for (int i = 0; i < 12; i++) {
		attached += attach(shown, program, MULTI, 0) == 0;
		detach(one, program);
	}
	stop = 1;
	pthread_join(thread, NULL);
	printf("attached some: %d\n", attached > 0);
	return 0;
}

int main(int count, char **word)
{
	pthread_t thread;
	const char *mode = count > 1 ? word[1] : "";
	words = word;
	if (!strcmp(mode, "deny") && count >= 5)
		deny((void *)(intptr_t)(count > 5 ? atoi(word[5]) : MULTI));
	else if (!strcmp(mode, "thread") && count == 5)
		return pthread_create(&thread, NULL, deny, (void *)MULTI) || pthread_join(thread, NULL);
	else if (!strcmp(mode, "replace") && count == 5)
		return replace(word[2], atoi(word[3]), atoi(word[4]));
	else if (!strcmp(mode, "clear") && count == 3)
		return clear(word[2]);
	else if (!strcmp(mode, "threads"))
		/* KCMP_FILES, PIDFD_THREAD */
		puts(syscall(SYS_kcmp, getpid(), getpid(), 2, 0, 0) == 0 ||
			syscall(SYS_pidfd_open, getpid(), O_EXCL) >= 0 ? "yes" : "no");
	else if (!strcmp(mode, "load"))
		say("", load_refusal(1, 5));
	else if (!strcmp(mode, "open") && count == 3)
		say("", by_id(atoi(word[2])));
	else if (!strcmp(mode, "edges") && count == 3)
		return edges(word[2]);
	else if (!strcmp(mode, "signals") && count == 5)
		return interrupted(word[2], atoi(word[3]), atol(word[4]));
	else if (!strcmp(mode, "flip") && count == 6) {
		one = group(word[2]);
		other = group(word[3]);
		return flipping(atoi(word[4]), atoi(word[5]));
	} else
		return 2;
	return 0;
}
