/* Uses so many bytes of memory, says so, and keeps them until it is killed.
 *   eat BYTES [locked|huge]   anonymous memory; each MiB that it has is printed
 *   eat BYTES names           names in the current directory that are not there, 192 bytes each
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1 << 20)
#define HUGE_PAGE (2 * MIB)

static void names(size_t size)
{
	char name[32];

	for (size_t at = 0; at < size / 192; at++) {
		snprintf(name, sizeof(name), "missing-%zu", at);
		access(name, F_OK);
	}
}

static int memory(size_t size, const char *kind)
{
	char *memory = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return perror("mmap"), 1;
	memory += HUGE_PAGE - (size_t)memory % HUGE_PAGE;
	if (!strcmp(kind, "huge") && madvise(memory, size, MADV_HUGEPAGE))
		return perror("madvise"), 1;
	if (!strcmp(kind, "locked") && mlock(memory, size))
		return perror("mlock"), 1;
	for (size_t at = 0; at < size; at += 4096) {
		memory[at] = 1;
		if (at % MIB == 0) {
			printf("%zu\n", at / MIB);
			fflush(stdout);
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	size_t size = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
	const char *kind = argc > 2 ? argv[2] : "";

	if (!strcmp(kind, "names"))
		names(size);
	else if (memory(size, kind))
		return 1;
	puts("eaten");
	fflush(stdout);
	for (;;)
		pause();
}
