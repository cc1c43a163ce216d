/* A failed fsync is final. The kernel then counts the pages as clean: they are read, a second fsync says that all is well, and the disk
 * holds the old bytes. One group g of a writer; another process B that finds the tail, and whose own work relies on what it found there.
 * Copies of g: 0 none, 1 in the page cache and dirty, 2 durable, 3 in the page cache and clean, but not on the disk. */
#define NOWHERE 0
#define DIRTY 1
#define DURABLE 2
#define FORGOTTEN 3
byte tail;                     /* g where the writer put it first */
byte again;                    /* g in the writer's next segment */
byte copied;                   /* g in a segment of B's */
bool acked, relied, gone, died;
#define READABLE(x) (x == DIRTY || x == DURABLE || x == FORGOTTEN)
inline sync(x, ok) {
  if
  :: atomic { x == DIRTY -> x = DURABLE; ok = 1 }
  :: atomic { x == DIRTY -> x = FORGOTTEN; ok = 0; printf("fsync fails\n") }
  :: atomic { x != DIRTY -> ok = 1; printf("fsync of what is clean: all is well\n") }
  fi
}
active proctype Writer() { bool ok; {
  atomic { tail = DIRTY; printf("W appends\n") }
  sync(tail, ok);
  if
  :: ok -> skip
  :: !ok ->
#ifdef RETRY
     sync(tail, ok);           /* the same segment, a second time */
     if :: ok -> goto answer :: else -> goto over fi
#else
     if :: atomic { tail = NOWHERE; printf("W cuts its tail\n") } :: skip fi;        /* where that works */
     atomic { again = DIRTY; printf("W appends to a new segment\n") }
     sync(again, ok);
     if :: !ok -> goto over :: else fi
#endif
  fi;
#ifdef RETRY
answer:
#endif
  if :: died -> skip :: else -> acked = 1; printf("W answers\n") fi;
over: skip
  } unless { died || gone }
}
active proctype Killer() { if :: died = 1; printf("W is killed\n") :: skip fi }
active proctype B() { bool ok; {
  died;                        /* its lock is free: B looks at what it left */
  if
  :: READABLE(tail) ->
#ifdef TRUST_TAIL
     ok = 1                    /* in place, as the page cache shows it */
#else
#ifdef TRUST_SECOND_FSYNC
     sync(tail, ok)            /* in place, after an fsync of its own */
#else
     copied = DIRTY;           /* the bytes are written anew */
     sync(copied, ok)
#endif
#endif
     ;
     if :: atomic { ok -> relied = 1; printf("B relies on what it found\n") } :: !ok fi
  :: else
  fi } unless { gone }
}
active proctype Power() { atomic { gone = 1; printf("the power fails\n");
  if :: tail == DIRTY -> tail = DURABLE :: tail == DIRTY || tail == FORGOTTEN -> tail = NOWHERE :: else fi;
  if :: again == DIRTY -> again = DURABLE :: again == DIRTY || again == FORGOTTEN -> again = NOWHERE :: else fi;
  if :: copied == DIRTY -> copied = DURABLE :: copied == DIRTY || copied == FORGOTTEN -> copied = NOWHERE :: else fi;
  assert(!(acked && tail != DURABLE && again != DURABLE && copied != DURABLE));
  assert(!(relied && tail != DURABLE && again != DURABLE && copied != DURABLE)) } }
