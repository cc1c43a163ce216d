/* A tag in a bucket that two writers set at once, without having bytes, while collectors take what nothing names.
 * Blob 0 is what the tag named, acknowledged; writer 1 wants blob 1, writer 2 blob 2. Each blob has one generation: who
 * finds it marked withdraws. The tag is one object, read and replaced on condition (its version): `counts` is the blob
 * that it names, `wants[b]` an intent beside it. */
bool data[3] = 1; bool gone[3];
byte counts = 0; bool wants[3]; byte version = 0; byte state = 0;   /* `state` grows with each blob that counts */
bool acked[3]; bool dead[3];

#ifdef COUNTING_ALONE
#define NAMED(b) (counts == b)
#else
#define NAMED(b) (counts == b || wants[b])
#endif
#ifdef KILL
#define DIE if :: dead[w] = 1; printf("W%d is killed\n", w); goto over :: skip fi
#else
#define DIE skip
#endif

proctype Writer(byte w) {
  byte v, s;
again:
  DIE;
  atomic { v = version; s = state; printf("W%d reads the tag: blob %d counts\n", w, counts) }
  DIE;
#ifdef NO_INTENT             /* the new blob takes the old one's place at once, and is looked at afterwards */
  if
  :: atomic { version == v -> counts = w; version++; state++; printf("W%d names blob %d\n", w, w) }
  :: atomic { version != v -> skip } goto again
  fi;
  DIE;
  if
  :: atomic { !gone[w] && data[w] -> printf("W%d looks: it is there\n", w) }
  :: atomic { gone[w] || !data[w] -> printf("W%d looks: it is marked\n", w) }
     DIE;
     atomic { if :: counts == w -> counts = 0; version++; state++; printf("W%d sets the tag back\n", w) :: else fi }
     goto over
  fi;
#else
  if
  :: atomic { version == v -> wants[w] = 1; version++; v = version; printf("W%d intends blob %d\n", w, w) }
  :: atomic { version != v -> skip } goto again
  fi;
  DIE;
#ifndef NO_LOOK
  if
  :: atomic { !gone[w] && data[w] -> printf("W%d looks: it is there\n", w) }
  :: atomic { gone[w] || !data[w] -> printf("W%d looks: it is marked\n", w) }
     DIE;
     atomic { if :: wants[w] -> wants[w] = 0; version++; printf("W%d withdraws\n", w) :: else fi }
     goto over
  fi;
#endif
confirm:
  DIE;
  if
  :: atomic { version == v -> counts = w; wants[1] = 0; wants[2] = 0; version++; state++; printf("W%d: blob %d counts now\n", w, w) }
  :: atomic { version != v -> v = version; printf("W%d reads the tag again\n", w);
#ifdef NO_STATE_CHECK        /* whoever finds the object changed confirms all the same */
       goto confirm
#else
       if :: state == s && wants[w] -> goto confirm :: else -> goto again fi
#endif
     }
  fi;
#endif
  DIE;
  atomic { acked[w] = 1; printf("W%d acknowledged\n", w) }
over: skip
}

proctype Collector() {
  byte b; bool named;
  do
  :: if :: b = 0 :: b = 1 :: b = 2 fi;
     atomic { gone[b] = 1; printf("C marks blob %d\n", b) }
     atomic { named = NAMED(b); printf("C reads the tag\n") }
     if
     :: !named -> atomic { data[b] = 0; printf("C deletes blob %d\n", b) }
     :: else
     fi
  :: break
  od
}

/* A reader takes what counts. Who is alive may still set it back; who is dead may not. */
#ifdef NO_INTENT
#define WRONG (!data[counts] && (counts == 0 || dead[counts] || acked[counts]))
#else
#define WRONG (!data[counts])
#endif
active proctype Monitor() {
end: if
  :: atomic { WRONG -> printf("VIOLATION: the tag names what is not there\n"); assert(0) }
  fi
}
init { atomic {
  run Writer(1);
#ifdef W2
  run Writer(2);
#endif
  run Collector();
#ifdef C2
  run Collector();
#endif
} }
