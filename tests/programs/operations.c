// Does to a file what programs do to files of /proc, and prints how each call ended: "call result",
// the result being an errno's name or a small number that does not depend on the content. Run on the
// kernel's own file and on ours, the two outputs can be compared line by line.
//   operations FILE
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

static char buffer[1 << 20];

static void say(const char *what, long result) {
    if (result < 0)
        printf("%s %s\n", what, strerrorname_np(errno));
    else
        printf("%s %ld\n", what, result);
}
// Whether there was anything at all, however long it was.
#define SAY(what, call) say(what, (errno = 0, (long)(call)))
#define ANY(what, call) say(what, (errno = 0, some((long)(call))))
static long some(long n) { return n > 0 ? 1 : n; }

static long opened(const char *path, int flags) {
    int fd = open(path, flags | O_NONBLOCK, 0600);
    if (fd < 0) return -1;
    close(fd);
    return 0;
}

static void polls(int fd) {
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT | POLLPRI};
    SAY("poll", poll(&p, 1, 0));
    printf("poll-revents %x\n", p.revents);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    struct timeval none = {0, 0};
    SAY("select-read", select(fd + 1, &set, NULL, NULL, &none));
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    SAY("epoll_ctl", epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
    close(epoll);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    const char *path = argv[1];
    char below[4096], beside[4096];
    snprintf(below, sizeof below, "%s/x", path);
    snprintf(beside, sizeof beside, "%s.ambit-new", path);
    struct stat st;
    struct statvfs fs;

    SAY("stat", stat(path, &st));
    printf("mode %o nlink %ld blocks %ld\n", st.st_mode, (long)st.st_nlink, (long)st.st_blocks);
    SAY("statvfs", statvfs(path, &fs));
    printf("statvfs-sane %d\n", fs.f_bsize > 0 && fs.f_bfree <= fs.f_blocks);
    SAY("access-read", access(path, R_OK));
    SAY("access-write", access(path, W_OK));
    SAY("access-execute", access(path, X_OK));
    SAY("open-write", opened(path, O_WRONLY));
    SAY("open-read-write", opened(path, O_RDWR));
    SAY("open-truncate", opened(path, O_WRONLY | O_TRUNC));
    SAY("open-append", opened(path, O_RDONLY | O_APPEND));
    SAY("open-create", opened(path, O_RDONLY | O_CREAT));
    SAY("open-exclusive", opened(path, O_RDONLY | O_CREAT | O_EXCL));
    SAY("open-directory", opened(path, O_RDONLY | O_DIRECTORY));
    SAY("open-direct", opened(path, O_RDONLY | O_DIRECT));
    SAY("open-path", opened(path, O_PATH));
    SAY("open-below", opened(below, O_RDONLY));
    SAY("create-beside", opened(beside, O_RDWR | O_CREAT));
    SAY("mkdir-beside", mkdir(beside, 0700));
    SAY("symlink-beside", symlink("x", beside));
    SAY("link-beside", link(path, beside));
    SAY("readlink", readlink(path, buffer, 100));
    SAY("rmdir", rmdir(path));
    SAY("execve", execl(path, path, NULL));
    SAY("chdir", chdir(path));

    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        say("open", fd);
        return 0;
    }
    puts("open 0");
    SAY("read-nothing", read(fd, buffer, 0));
    SAY("read-fault", syscall(SYS_read, fd, 8, 100));
    SAY("read-byte", read(fd, buffer, 1));
    SAY("seek-current", lseek(fd, 0, SEEK_CUR));
    SAY("read-next-byte", read(fd, buffer, 1));
    SAY("seek-negative", lseek(fd, -1, SEEK_SET));
    SAY("seek-start", lseek(fd, 0, SEEK_SET));
    ANY("read", read(fd, buffer, sizeof buffer));
    ANY("pread", pread(fd, buffer, 3, 2));
    SAY("pread-behind", pread(fd, buffer, 10, 1 << 28));
    SAY("pread-negative", pread(fd, buffer, 10, -1));
    struct iovec parts[2] = {{buffer, 1}, {buffer + 9, 2}};
    SAY("preadv", preadv(fd, parts, 2, 0));
    SAY("write", write(fd, "x", 1));
    SAY("fstat", fstat(fd, &st));
    SAY("fsync", fsync(fd));
    SAY("fdatasync", fdatasync(fd));
    SAY("ftruncate", ftruncate(fd, 0));
    SAY("fallocate", fallocate(fd, 0, 0, 1));
    SAY("fadvise", -(errno = posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL)));
    SAY("flock", flock(fd, LOCK_EX | LOCK_NB));
    struct flock whole = {.l_type = F_RDLCK};
    SAY("fcntl-lock", fcntl(fd, F_SETLK, &whole));
    int number;
    SAY("ioctl-tcgets", ioctl(fd, 0x5401, buffer));
    SAY("ioctl-fionread", ioctl(fd, FIONREAD, &number) < 0 ? -1 : 0);
    ANY("dup", dup(fd));
    polls(fd);
    void *map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    SAY("mmap-private", map == MAP_FAILED ? -1 : 0);
    SAY("mmap-shared", mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);

    int sink = open("/tmp", O_TMPFILE | O_RDWR, 0600), ends[2];
    off_t from = 0;
    ANY("sendfile", sendfile(sink, fd, &from, 100));
    lseek(fd, 0, SEEK_SET);
    if (pipe(ends)) return 2;
    ANY("splice", splice(fd, NULL, ends[1], NULL, 100, 0));
    from = 0;
    ANY("copy_file_range", copy_file_range(fd, &from, sink, NULL, 100, 0));
    SAY("getxattr", getxattr(path, "user.x", buffer, 10));
    SAY("listxattr", listxattr(path, buffer, sizeof buffer) < 0 ? -1 : 0);
    int watch = inotify_init1(0);
    ANY("inotify", inotify_add_watch(watch, path, IN_MODIFY));
    close(fd);
    return 0;
}
