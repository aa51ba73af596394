/*
 * Does what a program in a container must not do to the user who runs it there. The last argument ends in what:
 * escapes, endless, left (a child that keeps the output open).
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[argc - 1] : "";

	setvbuf(stdout, NULL, _IONBF, 0);
	if (strstr(what, "escapes")) {
		printf("\033]0;title\007\xc2\x9b" "2J\r\n");
		fprintf(stderr, "\033[31mred\n");
		printf("terminals: %d%d%d\n", isatty(0), isatty(1), isatty(2));
		printf("/dev/tty: %d\n", open("/dev/tty", O_RDWR | O_NOCTTY));
	} else if (strstr(what, "endless")) {
		/* Whole pages: a system call a line takes a minute where calls are slow. */
		static char pages[64 << 10];
		memset(pages, 'x', sizeof pages);
		pages[sizeof pages - 1] = '\n';
		for (;;)
			write(1, pages, sizeof pages);
	} else if (strstr(what, "left")) {
		if (!fork()) {
			sleep(1000);
			return 0;
		}
		puts("done");
		return 3;
	}
	return 0;
}
