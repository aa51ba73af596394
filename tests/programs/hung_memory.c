/*
 * Memory that hangs: a file of a FUSE filesystem whose server never answers a read.
 *   hung_memory serve FOLDER            mounts it there, prints "mounted" and serves until it is killed; a
 *                                       lookup of the name "hang" is not answered either
 *   hung_memory call FILE THREADS       passes the file's memory to sysinfo(2) in so many threads, prints "hanging"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *memory;

static void answer(int fuse, unsigned long unique, int error, const void *body, size_t length)
{
	char out[512];
	struct fuse_out_header head = { sizeof(head) + length, -error, unique };
	memcpy(out, &head, sizeof(head));
	if (length)
		memcpy(out + sizeof(head), body, length);
	if (write(fuse, out, head.len) < 0)
		perror("answer");
}

static struct fuse_attr attributes(unsigned long node)
{
	struct fuse_attr a = { .ino = node, .nlink = 1 };
	a.mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0666;
	a.size = node == 1 ? 0 : 1 << 20;
	return a;
}

static int serve(const char *folder)
{
	static char in[1 << 18];
	char options[128];
	int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fuse);
	if (fuse < 0 || mount("hung", folder, "fuse", 0, options)) {
		perror("mount");
		return 1;
	}
	puts("mounted");
	fflush(stdout);
	while (read(fuse, in, sizeof(in)) > 0) {
		struct fuse_in_header *head = (void *)in;
		unsigned long unique = head->unique;
		if (head->opcode == FUSE_INIT) {
			struct fuse_init_in *want = (void *)(head + 1);
			struct fuse_init_out init = { .major = 7, .minor = want->minor < 31 ? want->minor : 31, .max_write = 4096 };
			answer(fuse, unique, 0, &init, sizeof(init));
		} else if (head->opcode == FUSE_LOOKUP && !strcmp((char *)(head + 1), "hang")) {
			continue;
		} else if (head->opcode == FUSE_LOOKUP) {
			struct fuse_entry_out entry = { .nodeid = 2, .attr_valid = 1000, .entry_valid = 1000, .attr = attributes(2) };
			answer(fuse, unique, 0, &entry, sizeof(entry));
		} else if (head->opcode == FUSE_GETATTR) {
			struct fuse_attr_out attr = { .attr_valid = 1000, .attr = attributes(head->nodeid) };
			answer(fuse, unique, 0, &attr, sizeof(attr));
		} else if (head->opcode == FUSE_OPEN) {
			struct fuse_open_out opened = { .fh = 1 };
			answer(fuse, unique, 0, &opened, sizeof(opened));
		} else if (head->opcode == FUSE_STATFS) {
			struct fuse_statfs_out status = { .st = { .bsize = 4096, .frsize = 4096, .namelen = 255 } };
			answer(fuse, unique, 0, &status, sizeof(status));
		} else if (head->opcode == FUSE_RELEASE || head->opcode == FUSE_FLUSH) {
			answer(fuse, unique, 0, NULL, 0);
		} else if (head->opcode != FUSE_READ && head->opcode != FUSE_FORGET && head->opcode != FUSE_BATCH_FORGET && head->opcode != FUSE_INTERRUPT) {
			answer(fuse, unique, ENOSYS, NULL, 0);
		}
	}
	return 0;
}

static void *call(void *number)
{
	syscall(SYS_sysinfo, memory + (long)number * 65536);
	puts("answered");
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		return serve(argv[2]);
	if (argc != 4 || strcmp(argv[1], "call"))
		return 2;
	int file = open(argv[2], O_RDWR);
	memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (file < 0 || memory == MAP_FAILED) {
		perror(argv[2]);
		return 1;
	}
	pthread_t thread;
	for (long i = 0; i < atol(argv[3]); i++)
		pthread_create(&thread, NULL, call, (void *)i);
	usleep(200000);
	puts("hanging");
	fflush(stdout);
	pause();
	return 0;
}
