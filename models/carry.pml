/* A group lies in two segments: its records (an artifact, and another one that stays live) in segment 0, its commit in segment 1.
 * The artifact is changed, deleted and forgotten. A compactor writes the commit anew in its tail, moves the rows, unlinks segment 1,
 * and may be killed at any step; who takes its tail over, or rebuilds a lost catalog, reads the commit. */
bool ex1 = 1;              /* segment 1, with the first commit */
bool tail;                 /* the commit, written anew and synced, in the tail of the compactor */
bool known;                /* the catalog has applied that tail up to there */
bool copied;               /* the commit stands in a segment of a taker */
bool catalog = 1; bool dead; bool rebuilt; bool forgot;
byte row = 1;              /* the artifact's revision in the catalog: 0 is none */
bool deleted;
byte lock = 99; bool collecting;
#define TAKE(i) atomic { lock == 99 -> lock = i }
#define GIVE lock = 99
proctype User() {
  TAKE(1); atomic { if :: row == 1 -> row = 2; printf("changed: revision 2\n") :: else fi }; GIVE;
  TAKE(1); atomic { if :: row -> deleted = 1; printf("deleted\n") :: else fi }; GIVE
}
proctype Collector() {
  do
  :: atomic { !collecting -> collecting = 1 };
     TAKE(2);
     atomic { if :: row && deleted -> row = 0; forgot = 1; rebuilt = 0; printf("forgotten\n") :: else fi };
     GIVE; collecting = 0
  :: break
  od
}
proctype Compactor() { {
  atomic { !collecting -> collecting = 1 };
  atomic { tail = 1; printf("commit written anew\n") };
#ifdef UNLINK_FIRST
  atomic { ex1 = 0; printf("segment 1 unlinked\n") };
#endif
  atomic { lock == 99 && catalog -> known = 1; printf("switched\n") };
  atomic { ex1 = 0; printf("segment 1 unlinked\n") };
  collecting = 0 } unless { dead }
}
proctype Killer() { atomic { dead = 1; collecting = 0; printf("compactor killed\n") } }
proctype Taker() {
  do
  :: atomic { lock == 99 && dead && catalog && tail && !known -> lock = 3 };
     atomic {
#ifdef SAYS_AGAIN
       if :: !row -> row = 1; printf("revision 1 is applied again\n") :: else fi;
#endif
       tail = 0; printf("tail cut\n") };
     GIVE
  :: atomic { lock == 99 && !catalog -> lock = 3 };
     atomic {
       if :: tail && dead ->
#ifndef SKIP_ALWAYS
            copied = 1;
#endif
            tail = 0
          :: else fi;
       row = 2; rebuilt = 1; catalog = 1; known = tail; printf("rebuilt\n") };
     GIVE
  :: break
  od
}
proctype Loss() { atomic { lock == 99 -> catalog = 0; printf("catalog lost\n") } }
active proctype Monitor() { end: atomic {
  (forgot && row == 1 && !rebuilt) || !(ex1 || tail || copied) ->
  printf("VIOLATION: an old state is back, or what is live has no commit\n"); assert(0) } }
init { atomic {
  run User(); run Collector(); run Compactor(); run Killer(); run Taker();
#ifdef LOSS
  run Loss()
#endif
} }
