// Results of programs that tools/helpers.c runs: each is a number and perhaps a text.
#define RESULTS 64
#define TEXT 64

struct result {
	long value;
	char text[TEXT];
};
struct result results[RESULTS];
unsigned int used;

// What the tool knows of itself.
unsigned long ns_dev, ns_ino;
unsigned long user_hole;
