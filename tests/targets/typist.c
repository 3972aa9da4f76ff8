// Types three commands into an interactive bash on a terminal of its own, when it is told to. Waits for a line, types, says
// "done" when bash has ended, and stays until its input ends.
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

// Reads what bash prints until `text` came.
static int await(int terminal, const char *text) {
  static char seen[1 << 16];
  size_t n = 0;
  ssize_t got;
  while (n < sizeof seen - 1 && (got = read(terminal, seen + n, sizeof seen - 1 - n)) > 0) {
    n += got, seen[n] = 0;
    if (strstr(seen, text)) return 1;
  }
  return 0;
}

int main(void) {
  static const char *lines[] = {"echo typed one\n", "echo typed two\n", "exit\n"};
  char line[16];
  int terminal;
  pid_t bash = forkpty(&terminal, NULL, NULL, NULL);
  if (bash == 0) {
    setenv("PS1", "prompt:", 1);
    execl("/bin/bash", "bash", "--norc", "--noprofile", "-i", (char *)NULL);
    _exit(127);
  }
  if (!await(terminal, "prompt:")) return 1;
  puts("READY");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 1;
  for (int i = 0; i < 3; i++) {
    if (write(terminal, lines[i], strlen(lines[i])) < 0) return 1;
    if (i < 2 && !await(terminal, "prompt:")) return 1;
  }
  await(terminal, "\1 never");
  waitpid(bash, NULL, 0);
  puts("done");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {}
  return 0;
}
