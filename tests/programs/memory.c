/*
 * Memory that system calls are given.
 *   memory pages FILE                    passes pages of every kind to sysinfo(2); prints what the call returned, and whether
 *                                        it changed them
 *   memory strings FOLDER                passes strings in pages of every kind to mknod(2)
 *   memory many COUNT                    passes a page to sysinfo(2) that comes after so many mappings
 *   memory race PROGRAM TRIES US         so often, one thread calls sysinfo(2) while another one executes PROGRAM after at most
 *                                        60 microseconds, which watches for so many whether the page at the same address changes
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096L
#define SIZE 112

/* In a program at fixed addresses, the page is where it was before it was executed. */
static volatile unsigned char victim[PAGE] __attribute__((aligned(4096)));
static const char constant[SIZE] = "constant";
static const char *program, *watched;
static long delay;

static const char *result(long answer)
{
	return answer < 0 ? strerrorname_np(errno) : "ok";
}

static char *pages(int count, int protection)
{
	char *at = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(at, 0x5a, count * PAGE);
	if (mprotect(at, count * PAGE, protection))
		perror("mprotect");
	return at;
}

static char *mapped(const char *file, int access, int protection, int flags)
{
	int fd = open(file, access);
	char *at = mmap(NULL, PAGE, protection, flags, fd, 0);
	if (at == MAP_FAILED)
		perror("mmap");
	close(fd);
	return at;
}

static int is_written(const char *file)
{
	char text[8] = "";
	int fd = open(file, O_RDONLY);
	if (read(fd, text, 8) != 8)
		perror("read");
	close(fd);
	return memcmp(text, "original", 8) != 0;
}

/* Is anything of it other than before? Pages that cannot be read are made readable. */
static void call(const char *name, char *at, long size)
{
	char before[SIZE];
	long from = (long)at & ~(PAGE - 1), to = ((long)at + size + PAGE - 1) & ~(PAGE - 1);
	if (strstr(name, "no access"))
		mprotect((void *)from, to - from, PROT_READ), memcpy(before, at, size), mprotect((void *)from, to - from, PROT_NONE);
	else
		memcpy(before, at, size);
	const char *said = result(syscall(SYS_sysinfo, at));
	if (strstr(name, "no access"))
		mprotect((void *)from, to - from, PROT_READ);
	printf("%s: %s, %s\n", name, said, memcmp(before, at, size) ? "changed" : "unchanged");
}

static int all_pages(const char *file)
{
	char stack[SIZE] = "", *at;
	FILE *original = fopen(file, "w");
	fprintf(original, "original");
	fclose(original);
	truncate(file, PAGE);
	call("stack", stack, SIZE);
	call("heap", memset(malloc(SIZE), 0, SIZE), SIZE);
	call("writable", pages(1, PROT_READ | PROT_WRITE), SIZE);
	call("read-only", pages(1, PROT_READ), SIZE);
	call("no access", pages(1, PROT_NONE), SIZE);
	call("constant", (char *)constant, SIZE);
	call("code", (char *)all_pages, SIZE);
	call("private file", mapped(file, O_RDWR, PROT_READ | PROT_WRITE, MAP_PRIVATE), SIZE);
	call("read-only private file", mapped(file, O_RDWR, PROT_READ, MAP_PRIVATE), SIZE);
	call("private file that is open for reading", mapped(file, O_RDONLY, PROT_READ, MAP_PRIVATE), SIZE);
	call("read-only shared file", mapped(file, O_RDWR, PROT_READ, MAP_SHARED), SIZE);
	call("shared file that is open for reading", mapped(file, O_RDONLY, PROT_READ, MAP_SHARED), SIZE);
	printf("the file: %s\n", is_written(file) ? "changed" : "unchanged");
	call("shared file", mapped(file, O_RDWR, PROT_READ | PROT_WRITE, MAP_SHARED), SIZE);
	printf("the file: %s\n", is_written(file) ? "changed" : "unchanged");
	at = pages(2, PROT_READ | PROT_WRITE) + PAGE - 32;
	call("two pages", at, SIZE);
	at = pages(2, PROT_READ | PROT_WRITE);
	mprotect(at + PAGE, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
	call("two mappings", at + PAGE - 32, SIZE);
	at = pages(2, PROT_READ | PROT_WRITE);
	mprotect(at + PAGE, PAGE, PROT_READ);
	printf("the second page is read-only: %s, ", result(syscall(SYS_sysinfo, at + PAGE - 32)));
	printf("%s\n", at[PAGE] == 0x5a ? "unchanged" : "changed");
	at = pages(2, PROT_READ | PROT_WRITE);
	mprotect(at, PAGE, PROT_READ);
	call("the first page is read-only", at + PAGE - 32, SIZE);
	at = pages(2, PROT_READ | PROT_WRITE);
	munmap(at + PAGE, PAGE);
	printf("a gap follows: %s\n", result(syscall(SYS_sysinfo, at + PAGE - 32)));
	call("the end of memory", at + PAGE - SIZE, SIZE);
	printf("nowhere: %s\n", result(syscall(SYS_sysinfo, NULL)));
	printf("the kernel's: %s\n", result(syscall(SYS_sysinfo, -PAGE)));
	printf("past the end: %s\n", result(syscall(SYS_sysinfo, -1L)));
	return 0;
}

static void make(const char *name, const char *path)
{
	printf("%s: %s\n", name, result(syscall(SYS_mknod, path, S_IFCHR | 0600, makedev(1, 3))));
}

static int strings(const char *folder)
{
	char *at;
	if (chdir(folder))
		return 1;
	at = pages(1, PROT_READ | PROT_WRITE);
	strcpy(at, "read-only");
	mprotect(at, PAGE, PROT_READ);
	make(at, at);
	at = pages(1, PROT_READ | PROT_WRITE);
	strcpy(at, "no access");
	mprotect(at, PAGE, PROT_NONE);
	make("no access", at);
	at = pages(2, PROT_READ | PROT_WRITE) + PAGE - 5;
	strcpy(at, "two mappings");
	mprotect(at + 5, PAGE, PROT_READ);
	make("two mappings", at);
	at = pages(2, PROT_READ | PROT_WRITE) + PAGE - 5;
	strcpy(at, "no access after it");
	mprotect(at + 5, PAGE, PROT_NONE);
	make("no access after it", at);
	make("nowhere", NULL);
	return 0;
}

static int many(long count)
{
	char *at = mmap(NULL, (2 * count + 1) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (long i = 0; i < count; i++)
		if (mprotect(at + 2 * i * PAGE, PAGE, PROT_READ))
			perror("mprotect");
	at += 2 * count * PAGE;
	mprotect(at, PAGE, PROT_READ | PROT_WRITE);
	printf("%s\n", result(syscall(SYS_sysinfo, at)));
	return 0;
}

static void wait_for(long us)
{
	struct timespec time = { us / 1000000, us % 1000000 * 1000 };
	nanosleep(&time, NULL);
}

static void *execute(void *unused)
{
	char *words[] = { "memory", "watch", (char *)watched, NULL }, *none[] = { NULL };
	wait_for(delay);
	execve(program, words, none);
	_exit(9);
	return unused;
}

/* Exit status 1: the page of this program changed, which never calls. */
static int watch(long us)
{
	for (long waited = 0; waited < us; waited += 100) {
		for (int i = 0; i < SIZE; i++)
			if (victim[i])
				return 1;
		wait_for(100);
	}
	return 0;
}

static int race(long tries)
{
	long hits = 0, failed = 0;
	int status;
	srand(getpid());
	for (long i = 0; i < tries; i++) {
		delay = rand() % 60;
		pid_t child = fork();
		if (!child) {
			pthread_t thread;
			pthread_create(&thread, NULL, execute, NULL);
			for (;;)
				syscall(SYS_sysinfo, victim);
		}
		waitpid(child, &status, 0);
		hits += WIFEXITED(status) && WEXITSTATUS(status) == 1;
		failed += !WIFEXITED(status) || WEXITSTATUS(status) > 1;
	}
	printf("hits=%ld failed=%ld\n", hits, failed);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "pages"))
		return all_pages(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "strings"))
		return strings(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "many"))
		return many(atol(argv[2]));
	if (argc == 3 && !strcmp(argv[1], "watch"))
		return watch(atol(argv[2]));
	if (argc != 5 || strcmp(argv[1], "race"))
		return 2;
	program = argv[2];
	watched = argv[4];
	return race(atol(argv[3]));
}
