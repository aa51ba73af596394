/* What several programs of the tests need to be nasty. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* LENGTH bytes right before a page that is not there. */
static inline char *before_the_end(size_t length)
{
	char *pages = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(pages + 3 * 4096, 4096);
	return pages + 3 * 4096 - length;
}
