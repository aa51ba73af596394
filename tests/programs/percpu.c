/*
 * What programs with an entry for each possible processor rely on.
 *
 *   percpu FOLDER   FOLDER/possible sizes their tables, as libbpf, tcmalloc and LTTng-UST size theirs
 *
 * Runs on every processor that the kernel's affinity mask allows and says how often the number of getcpu(2) and of
 * rseq(2) lay behind the table; then reads a per-CPU map of BPF into a buffer of that size.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MAP_CREATE = 0, MAP_LOOKUP = 1, MAP_UPDATE = 2, PERCPU_ARRAY = 6, ANY = 0, MOST = 8192 };

static uint64_t values[MOST + 1];

static int call(int command, void *attribute, unsigned size)
{
	return syscall(SYS_bpf, command, attribute, size);
}

/* The last number of a list such as 0-3,8. */
static int last_of(const char *folder)
{
	char path[4096], list[4096];
	snprintf(path, sizeof(path), "%s/possible", folder);
	FILE *file = fopen(path, "r");
	if (!file || !fgets(list, sizeof(list), file)) {
		perror(path);
		exit(1);
	}
	fclose(file);
	const char *last = list;
	for (const char *at = list; *at; at++)
		if (*at == '-' || *at == ',')
			last = at + 1;
	return atoi(last);
}

/* What bpftool and libbpf do: value size times possible processors. */
static const char *map(int count)
{
	struct { uint32_t type, key, value, entries, rest[28]; } create = { PERCPU_ARRAY, 4, 8, 1, { 0 } };
	int fd = call(MAP_CREATE, &create, sizeof(create));
	if (fd < 0)
		return strerror(errno);
	uint32_t key = 0;
	struct { uint32_t fd, pad; uint64_t key, value, flags; } entry = { fd, 0, (uintptr_t)&key, (uintptr_t)values, ANY };
	for (int i = 0; i < MOST; i++)
		values[i] = 1;
	if (call(MAP_UPDATE, &entry, sizeof(entry)))
		return strerror(errno);
	for (int i = 0; i <= MOST; i++)
		values[i] = 42;
	if (call(MAP_LOOKUP, &entry, sizeof(entry)))
		return strerror(errno);
	for (int i = 0; i < count; i++)
		if (values[i] != 1)
			return "too short";
	for (int i = count; i <= MOST; i++)
		if (values[i] != 42)
			return "written behind its end";
	return "whole";
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	int count = last_of(argv[1]) + 1, ran = 0, beyond = 0, beyond_rseq = 0;
	size_t size = CPU_ALLOC_SIZE(MOST);
	cpu_set_t *allowed = CPU_ALLOC(MOST), *one = CPU_ALLOC(MOST);
	if (sched_getaffinity(0, size, allowed)) {
		perror("sched_getaffinity");
		return 1;
	}
	for (int cpu = 0; cpu < MOST; cpu++) {
		if (!CPU_ISSET_S(cpu, size, allowed))
			continue;
		CPU_ZERO_S(size, one);
		CPU_SET_S(cpu, size, one);
		unsigned now;
		if (sched_setaffinity(0, size, one) || syscall(SYS_getcpu, &now, NULL, NULL)) {
			perror("sched_setaffinity");
			return 1;
		}
		ran++;
		beyond += now >= (unsigned)count;
		if (__rseq_size) {
			const struct rseq *area = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
			beyond_rseq += *(volatile uint32_t *)&area->cpu_id >= (uint32_t)count;
		}
	}
	printf("table=%d\nran=%d\nbeyond=%d\nbeyond_rseq=%d\nrseq=%s\n", count, ran, beyond, beyond_rseq,
	       __rseq_size ? "yes" : "no");
	printf("map=%s\n", map(count));
	return 0;
}
