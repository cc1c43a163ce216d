/* One artifact in the log: changed by a process that dies, deleted by another, taken over, compacted, while the power may fail.
 * A takeover may be broken off at each step and begun anew. Copies of a record:
 * 0 gone, 1 written and not synced, 2 durable, 3 removed and not synced (a power cut may bring it back), 4 written, and its
 * fsync failed: it is read, and every further fsync says that all is well, and it is not on the disk (FSYNC_FAILS). */
#define GONE 0
#define WRITTEN 1
#define DURABLE 2
#define REMOVED 3
#define FORGOTTEN 4
#define HERE(x) (x == WRITTEN || x == DURABLE || x == FORGOTTEN)
byte r1 = DURABLE;             /* revision 1, in an old segment */
byte r2;                       /* revision 2, in the tail of the updater */
byte k2;                       /* revision 2, as a taker copied it */
byte t; byte trev;             /* the tombstone, and its revision */
byte crev = 1; bool cdead;     /* the catalog */
byte lock = 9;
bool killed, off, uacked, dacked;
#ifdef NO_TAILS
#define NOTHING_LOWER (!HERE(r1) && !HERE(k2))
#else
#define NOTHING_LOWER (!HERE(r1) && !HERE(k2) && !HERE(r2))
#endif
#define SETTLE(x) if :: x == REMOVED -> x = GONE :: else fi
#define TAKE(i) atomic { lock == 9 -> lock = i }
#define GIVE(i) atomic { lock == i -> lock = 9 }
#define FREE_OF(i) if :: lock == i -> lock = 9 :: else fi

/* whole commits of the dead writer's tail are copied, synced, applied; then the tail is cut and that is synced */
inline catch_up() {
  if
  :: killed && HERE(r2) ->
#ifndef TRUST_TAIL
     atomic { if :: k2 != DURABLE -> k2 = WRITTEN; printf("revision 2 is copied\n") :: else fi }
#ifndef NO_COPY_SYNC
     atomic { k2 = DURABLE; printf("the copy is durable\n") }
#endif
#endif
     atomic { if :: crev < 2 -> crev = 2 :: else fi; printf("revision 2 is applied\n") }
#ifndef TRUST_TAIL
     atomic { r2 = REMOVED; printf("the tail is cut\n") }
#ifndef NO_CUT_SYNC
     atomic { r2 = GONE; printf("the cut is durable\n") }
#endif
#endif
  :: else
  fi
}
active proctype Updater() { {
  TAKE(1);
  if
  :: cdead -> skip
  :: else ->
     atomic { r2 = WRITTEN; printf("U appends revision 2\n") }
#ifdef FSYNC_FAILS
     if
     :: atomic { r2 = FORGOTTEN; killed = 1; printf("U fsync fails: U gives the segment up\n") }
     :: atomic { r2 = DURABLE; printf("U fsync\n") }
     fi;
#else
     atomic { r2 = DURABLE; printf("U fsync\n") }
#endif
     atomic { crev = 2; uacked = 1; printf("U applies and answers\n") }
  fi;
  GIVE(1) } unless { atomic { killed || off -> FREE_OF(1) } }
}
active proctype KillUpdater() { if :: atomic { !uacked -> killed = 1; printf("U is killed\n") } :: skip fi }
#ifdef KILL_TAKER
bool killed_taker;
active proctype Taker() { {    /* an opener that is killed in the middle; whoever comes next begins anew */
  TAKE(2);
  catch_up();
  GIVE(2) } unless { atomic { killed_taker || off -> FREE_OF(2) } }
}
active proctype KillTaker() { if :: atomic { killed_taker = 1; printf("the taker is killed\n") } :: skip fi }
#endif
active proctype Deleter() { {
  TAKE(3);
#ifndef NO_CATCH_UP
  catch_up();
#endif
  atomic { trev = crev + 1; t = WRITTEN; printf("D appends a tombstone of revision %d\n", trev) }
  atomic { t = DURABLE; printf("D fsync\n") }
  atomic { cdead = 1; crev = trev; dacked = 1; printf("D applies and answers\n") }
  GIVE(3) } unless { atomic { off -> FREE_OF(3) } }
}
active proctype Compactor() { {
  dacked;
  do
  :: TAKE(4);
     if
     :: r1 == DURABLE -> r1 = REMOVED; printf("the old segment is unlinked\n");
#ifndef NO_DIRECTORY_SYNC
        r1 = GONE
#endif
     :: uacked && r2 == DURABLE && cdead -> r2 = REMOVED; printf("the updater's segment is unlinked\n");
#ifndef NO_DIRECTORY_SYNC
        r2 = GONE
#endif
     :: k2 == DURABLE && cdead -> k2 = REMOVED; printf("the taker's segment is unlinked\n");
#ifndef NO_DIRECTORY_SYNC
        k2 = GONE
#endif
     :: t == DURABLE && NOTHING_LOWER ->
#ifndef NO_LOOK_SYNC
        SETTLE(r1); SETTLE(r2); SETTLE(k2);    /* somebody may have died between a removal and its fsync */
#endif
        t = REMOVED; printf("the tombstone is dropped\n"); t = GONE
     :: else
     fi;
     GIVE(4)
  :: t == GONE -> break
  od } unless { atomic { off -> FREE_OF(4) } }
}
#define BACK (HERE(r1) && !(HERE(t) && trev > 1)) || ((HERE(r2) || HERE(k2)) && !(HERE(t) && trev > 2))
active proctype Monitor() {    /* what a rebuild would say now, after every process died */
  end: atomic { dacked && !off && (BACK) -> printf("VIOLATION: what was deleted is back\n"); assert(0) }
}
#define AFTER(x) if :: x == FORGOTTEN -> x = GONE :: x == WRITTEN || x == REMOVED -> x = DURABLE :: x == WRITTEN || x == REMOVED -> x = GONE :: else fi
active proctype Power() {
  if
  :: atomic { off = 1; printf("the power fails\n");
       AFTER(r1); AFTER(r2); AFTER(k2); AFTER(t);
       if :: dacked && (BACK) -> printf("VIOLATION: what was deleted is back\n"); assert(0) :: else fi;
       if :: crev == 2 && !cdead && r2 != DURABLE && k2 != DURABLE -> printf("VIOLATION: the catalog knew what is gone\n"); assert(0) :: else fi }
  :: skip
  fi
}
