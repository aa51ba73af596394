/*
 * Prints the ids, rights and filter of this process, its control groups and its root folder. Arguments are ignored.
 */
#include <dirent.h>
#include <stdio.h>
#include <string.h>

static void print(const char *file, const char *const *labels)
{
	FILE *f = fopen(file, "r");
	char line[4096];

	if (!f) {
		printf("no %s\n", file);
		return;
	}
	while (fgets(line, sizeof line, f))
		for (const char *const *label = labels; *label; label++)
			if (!strncmp(line, *label, strlen(*label)))
				fputs(line, stdout);
	fclose(f);
}

int main(void)
{
	static const char *const status[] = { "Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "NSpid:", NULL };
	static const char *const all[] = { "", NULL };
	DIR *fds = opendir("/proc/self/fd");
	struct dirent *entry;

	print("/proc/self/status", status);
	print("/proc/self/cgroup", all);
	while (fds && (entry = readdir(fds)))
		if (entry->d_name[0] != '.')
			printf("fd=%s\n", entry->d_name);
	return 0;
}
