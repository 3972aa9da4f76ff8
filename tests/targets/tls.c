// A TLS client and a TLS server in one process, over memory: a handshake of five steps, then two messages. Needs no
// certificates (anonymous key exchange) and no headers of OpenSSL's. Waits for a line, talks, says "done", and stays until its
// input ends.
#include <stdio.h>

typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_st SSL;
typedef struct bio_st BIO;
const void *TLS_method(void);
SSL_CTX *SSL_CTX_new(const void *);
long SSL_CTX_ctrl(SSL_CTX *, int, long, void *);
int SSL_CTX_set_cipher_list(SSL_CTX *, const char *);
SSL *SSL_new(SSL_CTX *);
void SSL_set_bio(SSL *, BIO *, BIO *);
void SSL_set_connect_state(SSL *);
void SSL_set_accept_state(SSL *);
int SSL_do_handshake(SSL *);
int SSL_write(SSL *, const void *, int);
int SSL_read(SSL *, void *, int);
int BIO_new_bio_pair(BIO **, size_t, BIO **, size_t);
enum { SET_DH_AUTO = 118, SET_MAX_PROTO_VERSION = 124, TLS1_2 = 0x303 };

int main(void) {
  char line[16], text[16];
  SSL_CTX *ctx = SSL_CTX_new(TLS_method());
  SSL_CTX_ctrl(ctx, SET_MAX_PROTO_VERSION, TLS1_2, NULL);
  SSL_CTX_ctrl(ctx, SET_DH_AUTO, 1, NULL);
  if (!SSL_CTX_set_cipher_list(ctx, "aNULL:@SECLEVEL=0")) return 2;
  SSL *client = SSL_new(ctx), *server = SSL_new(ctx);
  BIO *ours, *theirs;
  BIO_new_bio_pair(&ours, 0, &theirs, 0);
  SSL_set_bio(client, ours, ours);
  SSL_set_bio(server, theirs, theirs);
  SSL_set_connect_state(client);
  SSL_set_accept_state(server);
  puts("READY");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 1;
  int waiting = 0, finished = 0;
  for (int turn = 0; finished < 2 && turn < 20; turn++)
    SSL_do_handshake(turn % 2 ? server : client) == 1 ? finished++ : waiting++;
  for (int i = 0; i < 2; i++)
    if (SSL_write(client, "hello", 5) != 5 || SSL_read(server, text, sizeof text) != 5) return 3;
  printf("done %d %d\n", waiting, finished);
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {}
  return 0;
}
