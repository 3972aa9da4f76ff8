// What a file of Go's compiler has, and what it is known by.
__attribute__((section(".gopclntab"), used)) static const char line_table[] = "none";
