/* Enters strict seccomp mode and waits: read, write and exit are all it may do. */
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	char c;
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
		return 1;
	if (write(1, "ready\n", 6) != 6)
		return 1;
	while (read(0, &c, 1) > 0)
		;
	if (write(1, "ok\n", 3) != 3)
		return 1;
	syscall(SYS_exit, 0);
	return 0;
}
