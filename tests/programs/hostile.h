/* What several programs of the tests need to be nasty. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* LENGTH bytes right before a page that is not there. */
static char *before_the_end(size_t length)
{
	char *pages = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(pages + 3 * 4096, 4096);
	return pages + 3 * 4096 - length;
}

static volatile int stop;
static char folder[4000], linked[4000];

/* A thread that exchanges a folder and a link for ever. */
static __attribute__((unused)) void *flip(void *unused)
{
	(void)unused;
	while (!stop)
		syscall(SYS_renameat2, AT_FDCWD, folder, AT_FDCWD, linked, RENAME_EXCHANGE);
	return NULL;
}
