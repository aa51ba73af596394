/*
 * Reads every counter of the container again and again, and says which ever became less.
 *   watch SECONDS FOLDER    FOLDER/proc has the files; with /, sysinfo(2) too
 * Counters: all columns of the cpu lines of /proc/stat (a line that vanished and came back goes on), processes, intr,
 * ctxt; /proc/uptime; /proc/vmstat but for the amounts, which begin with nr_; /proc/diskstats but for requests in
 * flight; uptime of sysinfo(2). Prints key=value; ends with 1 when something decreased.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

struct counter { char name[96]; double last; };
static struct counter counters[8192];
static int known, decreased;
static long checks;
static char folder[4096];

static void check(const char *name, double value)
{
	int i;

	checks++;
	for (i = 0; i < known && strcmp(counters[i].name, name); i++)
		;
	if (i == known) {
		if (known == 8192) {
			fprintf(stderr, "too many counters\n");
			exit(2);
		}
		snprintf(counters[known++].name, sizeof(counters[0].name), "%s", name);
	} else if (value < counters[i].last && decreased++ < 50) {
		printf("decreased: %s from %.2f to %.2f\n", name, counters[i].last, value);
	}
	counters[i].last = value;
}

/* Each line: a name of so many words, then numbers. */
static int file(const char *path, int words, const char *only, const char *but, int skip)
{
	char whole[8192], line[65536], name[160];
	int lines = 0;

	snprintf(whole, sizeof(whole), "%s/proc/%s", folder, path);
	FILE *f = fopen(whole, "r");
	if (!f) {
		perror(whole);
		exit(2);
	}
	while (fgets(line, sizeof(line), f)) {
		char first[64] = "", *rest = line, *end;
		int column = 0;
		for (int i = 0; i < words; i++) {
			while (isspace((unsigned char)*rest))
				rest++;
			snprintf(first, sizeof(first), "%.*s", (int)strcspn(rest, " \t\n"), rest);
			rest += strcspn(rest, " \t\n");
		}
		if ((only && strncmp(first, only, strlen(only))) || (but && !strncmp(first, but, strlen(but))))
			continue;
		lines++;
		for (double value; value = strtod(rest, &end), end != rest; rest = end) {
			snprintf(name, sizeof(name), "%s %s %d", path, first, ++column);
			if (column != skip)
				check(name, value);
		}
	}
	fclose(f);
	return lines;
}

int main(int argc, char **argv)
{
	int rounds = 0, least = 1 << 30, most = 0;

	if (argc != 3)
		return 2;
	snprintf(folder, sizeof(folder), "%s", argv[2]);
	time_t end = time(NULL) + atol(argv[1]);
	do {
		int lines = file("stat", 1, "cpu", NULL, 0);
		least = lines < least ? lines : least;
		most = lines > most ? lines : most;
		for (const char **key = (const char *[]){ "intr", "ctxt", "processes", "softirq", NULL }; *key; key++)
			file("stat", 1, *key, NULL, 0);
		file("uptime", 0, NULL, NULL, 0);
		file("vmstat", 1, NULL, "nr_", 0);
		file("diskstats", 3, NULL, NULL, 9);
		if (!strcmp(folder, "/")) {
			struct sysinfo s;
			sysinfo(&s);
			check("sysinfo uptime", s.uptime);
		}
		rounds++;
		usleep(10000);
	} while (time(NULL) < end);
	printf("rounds=%d\nchecks=%ld\ncounters=%d\ndecreased=%d\n", rounds, checks, known, decreased);
	printf("least_cpus=%d\nmost_cpus=%d\n", least - 1, most - 1);
	for (int i = 0; i < known; i++)
		if (!strncmp(counters[i].name, "stat cpu ", 9) || !strncmp(counters[i].name, "stat processes", 14))
			printf("%s=%.0f\n", counters[i].name, counters[i].last);
	return decreased > 0;
}
