#!/usr/bin/python3
"""A stand-in for a service manager with a descriptor store: runs a command, and starts it again with what it stored when a
signal killed it, as systemd does with FileDescriptorStoreMax=. Ends with the command, which it passes SIGTERM on to. With
--preserve it holds the descriptors when the command has ended, as systemd does with FileDescriptorStorePreserve=yes: SIGUSR1
starts the command again, SIGTERM ends this program. With --sockets FOLDER it holds the sockets of ambit.socket in that folder,
as a socket unit does.

    fd_store.py [--preserve] [--sockets FOLDER] COMMAND...
"""
import array
import os
import select
import signal
import socket
import sys
import tempfile

arguments = sys.argv[1:]
preserve = arguments[0] == "--preserve"
if preserve:
    del arguments[0]
units = []  # name, descriptor: those of a socket unit have its name
if arguments[0] == "--sockets":
    runtime = arguments[1]
    del arguments[:2]
    os.makedirs(runtime, exist_ok=True)
    for name, kind in [("control", socket.SOCK_STREAM), ("oci", socket.SOCK_STREAM), ("lxc", socket.SOCK_SEQPACKET)]:
        unit = socket.socket(socket.AF_UNIX, kind)
        at = os.path.join(runtime, name + ".sock")
        if os.path.exists(at):
            os.unlink(at)
        unit.bind(at)
        os.chmod(at, 0o600)
        unit.listen(128)
        units.append(("ambit.socket", unit.detach()))
folder = tempfile.mkdtemp(prefix="ambit-test-store-")
path = os.path.join(folder, "notify")
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(path)
stored = []  # name, descriptor


def listen():
    message, control, _, _ = notify.recvmsg(65536, socket.CMSG_LEN(64 * 4))
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data)
    fields = dict(line.split("=", 1) for line in message.decode().splitlines() if "=" in line)
    name = fields.get("FDNAME", "stored")
    if fields.get("FDSTOREREMOVE") == "1":
        for entry in [entry for entry in stored if entry[0] == name]:
            os.close(entry[1])
            stored.remove(entry)
    if fields.get("FDSTORE") == "1":
        stored.extend((name, fd) for fd in fds)


def start():
    child = os.fork()
    if child:
        return child
    environment = dict(os.environ, NOTIFY_SOCKET=path, FDSTORE="4096", LISTEN_PID=str(os.getpid()))
    passed = units + stored
    environment["LISTEN_FDS"] = str(len(passed))
    environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in passed)
    for index, (_, fd) in enumerate(passed):
        os.dup2(fd, 500 + index)
    for index in range(len(passed)):
        os.dup2(500 + index, 3 + index)
    os.closerange(3 + len(passed), 1024)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.execvpe(arguments[0], arguments, environment)


told_to_end = False


def pass_on(*_):
    global told_to_end
    if select.select([ended], [], [], 0)[0]:
        # The command has ended before, which this program has not seen yet.
        told_to_end = True
    else:
        signal.pidfd_send_signal(ended, signal.SIGTERM)


# Only waited for, below.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
child = start()
ended = os.pidfd_open(child)
signal.signal(signal.SIGTERM, pass_on)
while True:
    ready, _, _ = select.select([notify, ended], [], [])
    if notify in ready:
        listen()
        continue
    # From here on the handler would find no child.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    os.close(ended)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        if not preserve:
            break
        print("fd_store: stopped with", len(stored), "descriptors", file=sys.stderr, flush=True)
        if told_to_end or signal.sigwait([signal.SIGUSR1, signal.SIGTERM]) == signal.SIGTERM:
            break
    print("fd_store: started again with", len(stored), "descriptors", file=sys.stderr, flush=True)
    child = start()
    ended = os.pidfd_open(child)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
os.unlink(path)
os.rmdir(folder)
sys.exit(os.WEXITSTATUS(status))
