/* A 32-bit program that needs no C library: prints "ready", reads until stdin ends, prints "ok", exits. */
	.globl _start
_start:
	movl $4, %eax
	movl $1, %ebx
	movl $ready, %ecx
	movl $6, %edx
	int $0x80
1:	movl $3, %eax
	movl $0, %ebx
	movl $buf, %ecx
	movl $1, %edx
	int $0x80
	testl %eax, %eax
	jg 1b
	movl $4, %eax
	movl $1, %ebx
	movl $ok, %ecx
	movl $3, %edx
	int $0x80
	movl $1, %eax
	xorl %ebx, %ebx
	int $0x80
	.data
ready:	.ascii "ready\n"
ok:	.ascii "ok\n"
buf:	.byte 0
	.section .note.GNU-stack,"",@progbits
