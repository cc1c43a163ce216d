/* Local log store: pins, condemn, wait, second mark, drop, compaction, takeover, catalog loss + rebuild.
 * One chunk hash h. Artifacts: 0 (old, deleted and restored by D), 1 (writer 1), 2 (writer 2: artifact, or lease then tag).
 * The rules of the protocol are on unless a -DNO_... flag (negative control) takes one away. See README. */
#define NONE 9
#define FREE 99
#define ABSENT 0
#define PRESENT 1
#define CONDEMNED 2
#define LIVE 1
#define DELETED 2

byte path = 0;                 /* which catalog file is at the path; NONE = lost */
byte row[2]; byte loc[2]; byte epoch[2];
byte art[6];                   /* art[3*cat + a] */
#define ART(c,a) art[3*(c)+(a)]
byte phys[4];                  /* copies of h: 0 old segment, 1/2 writers' segments, 3 compaction's; 0 none 1 page cache 2 durable */
byte com[3];                   /* commit record of group w: 0 none 1 page cache 2 durable */
bool own[3];                   /* group w carries its own copy of h */
bool closed[3];                /* tail of w's segment has been taken over or cast away (a durable record) */
byte lA0 = LIVE;               /* highest durable revision of artifact 0 in the log */
bool pinned[6]; byte pinC[6]; byte pinE[6];
bool lTag;
bool lease;                    /* writer 2's session file */
byte lock = FREE; byte clock_ = FREE;
bool dead[8]; bool fin[8];
bool acked[3]; bool delacked;
bool scanning;

/* ---- rebuild: everything that the log says, epoch starts again, nothing is condemned */
byte t_;
inline scan() {
  d_step {
    epoch[1] = 0;
    ART(1,0) = lA0;
    row[1] = ABSENT; loc[1] = 0;
    t_ = 1;
    do
    :: t_ <= 2 ->
       if
       :: com[t_] >= 1 && !(closed[t_] && ART(0,t_) != LIVE) ->       /* whole commits of tails, dead or alive, are copied and fsynced */
          com[t_] = 2;
          if :: own[t_] && phys[t_] == 1 -> phys[t_] = 2 :: else fi;
          ART(1,t_) = LIVE;
#if defined(LEASE) && !defined(BLOBS_UNCHECKED)
          if :: t_ == 2 && !lTag -> ART(1,2) = 0 :: else fi   /* a blob without a name: its row comes back only when it is whole */
#endif
       :: else -> ART(1,t_) = 0
       fi;
       t_++
    :: else -> break
    od;
    if
    :: phys[0] == 2 -> row[1] = PRESENT; loc[1] = 0
    :: else ->
       if
       :: phys[1] == 2 && com[1] == 2 -> row[1] = PRESENT; loc[1] = 1
       :: else ->
          if
          :: phys[2] == 2 && com[2] == 2 -> row[1] = PRESENT; loc[1] = 2
          :: else -> if :: phys[3] == 2 -> row[1] = PRESENT; loc[1] = 3 :: else fi
          fi
       fi
    fi;
#ifdef V1
    t_ = 1;
    do
    :: t_ <= 2 -> if :: ART(1,t_) == LIVE && row[1] == ABSENT && dead[t_] -> ART(1,t_) = 0; closed[t_] = 1 :: else fi; t_++
    :: else -> break
    od;
#endif
    t_ = 1;
    do
    :: t_ <= 2 -> if :: dead[t_] && com[t_] == 2 -> closed[t_] = 1 :: else fi; t_++
    :: else -> break
    od;
    t_ = 0
  }
}
inline reopen(id, my) {
  do
  :: atomic { path == my -> break }
  :: atomic { path != my && path != NONE -> my = path; break }
  :: atomic { path == NONE && lock == FREE -> lock = id; scan(); printf("P%d rebuilds: scan\n", id); }
     atomic { path = 1; my = 1; lock = FREE; printf("P%d rebuilds: publish\n", id); break }
  :: atomic { path == NONE && lock == id -> scan(); printf("P%d rebuilds under its lock: scan\n", id); }
     atomic { path = 1; my = 1; printf("P%d rebuilds: publish\n", id); break }
  od
}
inline take(id) { atomic { lock == FREE -> lock = id } }
inline give(id) { atomic { assert(lock == id); lock = FREE } }
inline begin(id, my, e, c) {           /* read the epoch, then write the pin: two steps */
  atomic { e = epoch[my]; c = my }
#ifndef NO_PIN
  atomic { pinned[id] = 1; pinC[id] = c; pinE[id] = e; printf("P%d pins (catalog %d, epoch %d)\n", id, c, e) }
#endif
}

inline takeover(id, my, w) {
  if
  :: dead[w] && com[w] >= 1 && !closed[w] ->
    take(id);
    reopen(id, my);
    if
    :: atomic { dead[w] && com[w] >= 1 && !closed[w] ->
#ifdef V1
       pinned[5] = 1; pinC[5] = NONE; pinE[5] = 0;
#endif
       printf("P%d takes over the tail of W%d\n", id, w) }
#ifdef V1
       atomic {
         if
         :: !own[w] && row[my] == ABSENT -> closed[w] = 1; printf("P%d casts the commit of W%d away: its hit is gone\n", id, w)
         :: !own[w] && row[my] == CONDEMNED ->
#ifndef NO_PARDON
            row[my] = PRESENT
#else
            skip
#endif
         :: else
         fi }
#endif
       if
       :: !closed[w] ->
          atomic { com[w] = 2; if :: own[w] -> phys[w] = 2 :: else fi }
          reopen(id, my);
          atomic { if
            :: !closed[w] -> ART(my,w) = LIVE; closed[w] = 1;
#ifdef LEASE
               if :: w == 2 && !lTag -> ART(my,2) = 0 :: else fi;
#endif

               if :: own[w] && row[my] != PRESENT -> row[my] = PRESENT; loc[my] = w :: else fi;
               printf("P%d applies the copied commit of W%d\n", id, w)
            :: else fi }
       :: else
       fi;
#ifdef V1
       pinned[5] = 0
#endif
    :: else
    fi;
    give(id)
  :: else
  fi
}

proctype Writer(byte w) {
  byte my = 0, e, c; bool hit;
  {
    begin(w, my, e, c);
#ifndef NO_LOOKUP_CHECK
    reopen(w, my);
#endif
    atomic { hit = (row[my] == PRESENT);
#ifdef NO_MISS
      hit = (row[my] != ABSENT);
#endif
      own[w] = !hit; printf("W%d look-up in catalog %d: hit=%d\n", w, my, hit) }
    if :: !hit -> atomic { phys[w] = 1; printf("W%d appends h\n", w) } :: else fi;
#ifdef EARLY_CHECK
    take(w); reopen(w, my);
    atomic { if :: hit && row[my] == ABSENT -> printf("W%d: hit is gone, gives up\n", w); lock = FREE; pinned[w] = 0; goto over :: hit && row[my]==CONDEMNED -> row[my]=PRESENT :: else fi; com[w] = 1; lock = FREE }
#else
    atomic { com[w] = 1; printf("W%d appends its commit\n", w) }
#endif
    atomic { com[w] = 2; if :: phys[w] == 1 -> phys[w] = 2 :: else fi; printf("W%d fsync\n", w) }
#ifndef NO_APPLY_LOCK
    take(w);
#endif
    reopen(w, my);
    atomic {
#ifdef REVALIDATE
      if
      :: hit && row[my] == ABSENT -> printf("W%d: hit is gone at apply, error to the caller\n", w); lock = FREE; pinned[w] = 0; goto over
      :: hit && row[my] == CONDEMNED -> row[my] = PRESENT
      :: else fi;
#endif
      ART(my,w) = LIVE;
      if
      :: !hit && (row[my] != PRESENT || phys[loc[my]] == 0) -> row[my] = PRESENT; loc[my] = w
      :: else fi;
#ifdef LEASE
      if :: w == 2 -> ART(my,2) = 0 :: else fi;     /* blobs.put: no name yet */
#endif
      printf("W%d applies to catalog %d\n", w, my) }
#ifndef NO_APPLY_LOCK
    give(w);
#endif
#ifdef LEASE
    if
    :: w == 2 -> lease = 1
    :: else fi;
#endif
    atomic { acked[w] = 1; printf("W%d acknowledged\n", w) }
    atomic { pinned[w] = 0; printf("W%d unpins\n", w) }
#ifdef LEASE
    if
    :: w == 2 ->                                      /* tags.set, then the lease is released */
       take(2); begin(2, my, e, c); reopen(2, my);
#ifndef NO_PARDON
       atomic { assert(row[my] != ABSENT); if :: row[my] == CONDEMNED -> row[my] = PRESENT; printf("tags.set pardons\n") :: else fi }
#endif
       atomic { lTag = 1; printf("tag record durable\n") }
       reopen(2, my);
       atomic { ART(my,2) = LIVE; printf("tag applied\n") }
       give(2); pinned[2] = 0; atomic { lease = 0; printf("lease released\n") }
    :: else fi;
#endif
over: fin[w] = 1
  } unless {
    atomic { dead[w] -> pinned[w] = 0; fin[w] = 1; if :: w == 2 -> lease = 0 :: else fi;
             if :: lock == w -> lock = FREE :: else fi } }
}

proctype Deleter() {                       /* delete (undo window 0), then restore as long as it can be restored */
  byte my = 0, e, c; bool ok;
  take(0); begin(0, my, e, c); reopen(0, my);
  atomic { acked[0] = 0; lA0 = DELETED; printf("D: tombstone of A0 durable\n") }
  reopen(0, my);
  atomic { ART(my,0) = DELETED; delacked = 1; printf("D: A0 deleted\n") }
  give(0); pinned[0] = 0;
#ifdef NORESTORE
  ok = 0; goto enddel;
#endif
  take(0); begin(0, my, e, c); reopen(0, my);
  atomic {
    ok = (row[my] != ABSENT);
#ifndef NO_PARDON
    if :: row[my] == CONDEMNED -> row[my] = PRESENT; printf("D: restore pardons h\n") :: else fi;
#endif
    if :: ok -> delacked = 0 :: else fi;
  }
  if
  :: ok ->
     atomic { lA0 = LIVE; printf("D: restore record durable\n") }
     reopen(0, my);
     atomic { ART(my,0) = LIVE; printf("D: A0 restored\n") }
     atomic { acked[0] = 1; lock = FREE; pinned[0] = 0 }
  :: else -> atomic { lock = FREE; pinned[0] = 0; printf("D: restore says gone\n") }
  fi;
#ifdef DEL2
  take(0); begin(0, my, e, c); reopen(0, my);
  atomic { acked[0] = 0; lA0 = DELETED }
  reopen(0, my);
  atomic { ART(my,0) = DELETED; printf("D: A0 deleted again\n") }
  give(0); pinned[0] = 0;
#endif
enddel:  fin[0] = 1
}

proctype Reader() {
  byte my = 0, e, c, l, a, n;
  begin(3, my, e, c);
  reopen(3, my);
  atomic { a = ART(my,0); l = loc[my];
#ifndef NO_READ_PARDON
    if :: a == LIVE && row[my] == CONDEMNED -> row[my] = PRESENT; printf("R: pardons what it reads\n") :: else fi;
#endif
#ifdef READ_MISSES_CONDEMNED
    assert(!(a == LIVE && row[my] == CONDEMNED && acked[0]));
#endif
    printf("R: look-up A0 state %d at %d\n", a, l) }
  if
  :: a == LIVE ->
     do
     :: atomic { phys[l] != 0 -> break }
     :: phys[l] == 0 -> reopen(3, my);
        atomic { printf("R: file gone, looks up again\n"); assert(row[my] != ABSENT); l = loc[my] }
     od
  :: else fi;
  atomic { pinned[3] = 0; fin[3] = 1 }
}

proctype Opener() {                        /* some process that opens the store and takes over tails at any time */
  byte my = 0;
  {
    takeover(4, my, 1);
    fin[4] = 1
  } unless {
    atomic { dead[4] -> if :: lock == 4 -> lock = FREE :: else fi; pinned[5] = 0; fin[4] = 1 } }
}
#ifdef KILL_TAKER
proctype TakerKiller() { if :: atomic { !fin[4] -> dead[4] = 1; printf("P4 killed\n") } :: skip fi }
#endif

#define GONE(p) (!pinned[p] || (pinC[p] == my && pinE[p] >= ep))
#ifdef NO_FOREIGN_PIN
#undef GONE
#define GONE(p) (!pinned[p] || pinE[p] >= ep)
#endif
#define ABANDON if :: path == my :: else -> goto cycle_end fi

proctype Collector(byte id; byte cycles) {
  byte my = 0, ep, n; bool reached, copied;
  {
#ifndef NO_COLLECTOR_LOCK
    atomic { clock_ == FREE -> clock_ = id }
#endif
    do
    :: n < cycles ->
      n++;
      reopen(id, my);
#ifdef EPOCH_FIRST
      atomic { epoch[my]++; ep = epoch[my] }
      ABANDON;
      if :: atomic { row[my] == PRESENT -> row[my] = CONDEMNED; printf("C%d condemns h, epoch was already %d\n", id, ep) } :: skip fi;
#else
      ABANDON;
      /* the first mark is allowed to be wrong: condemn whatever */
      if :: atomic { row[my] == PRESENT -> row[my] = CONDEMNED; printf("C%d condemns h in catalog %d\n", id, my) } :: skip fi;
      atomic { epoch[my]++; ep = epoch[my]; printf("C%d epoch %d\n", id, ep) }
#endif
#ifdef WAIT_UNDER_LOCK
      take(id);
#endif
#ifndef NO_WAIT
      GONE(0); GONE(1); GONE(2); GONE(3); GONE(5);
#endif
#ifdef WAIT_UNDER_LOCK
      give(id);
#endif
#ifdef V2
      ABANDON;
      takeover(id, my, 1); takeover(id, my, 2);
#endif
      reached = 0;
#ifndef LEASES_LAST
      if :: lease -> reached = 1 :: else fi;
#endif
      ABANDON; if :: ART(my,0) == LIVE -> reached = 1 :: else fi;
      ABANDON; if :: ART(my,1) == LIVE -> reached = 1 :: else fi;
      ABANDON; if :: ART(my,2) == LIVE -> reached = 1 :: else fi;
#ifdef LEASES_LAST
      if :: lease -> reached = 1 :: else fi;
#endif
#ifndef NO_ABANDON
      ABANDON;
#else
      reopen(id, my);
#endif
      if
      :: reached -> atomic { if :: row[my] == CONDEMNED -> row[my] = PRESENT; printf("C%d pardons h\n", id) :: else fi }
      :: else -> atomic {
#ifdef DROP_BY_LIST
         row[my] = ABSENT; printf("C%d drops h\n", id)
#else
         if :: row[my] == CONDEMNED -> row[my] = ABSENT; printf("C%d drops h from catalog %d\n", id, my) :: else fi
#endif
         }
      fi;
      /* compaction of the old segment */
      copied = 0;
      if
      :: phys[0] == 2 ->
         ABANDON;
         if
         :: atomic { row[my] != ABSENT && loc[my] == 0 -> phys[3] = 1 }
            atomic { phys[3] = 2; copied = 1; printf("C%d copies h to a new segment\n", id) }
         :: atomic { !(row[my] != ABSENT && loc[my] == 0) -> skip }
         fi;
#ifndef NO_UNLINK_LOCK
         take(id);
#endif
#ifndef NO_UNLINK_CHECK
         if :: path == my :: else ->
#ifndef NO_UNLINK_LOCK
            give(id);
#endif
            goto cycle_end fi;
#endif
         atomic { if
            :: row[my] != ABSENT && loc[my] == 0 && copied -> loc[my] = 3
            :: row[my] != ABSENT && loc[my] == 0 && !copied -> if :: lock == id -> lock = FREE :: else fi; goto cycle_end
            :: else fi }
         atomic { phys[0] = 0; printf("C%d unlinks the old segment\n", id) }
#ifndef NO_UNLINK_LOCK
         give(id)
#endif
      :: else
      fi;
cycle_end: skip
    :: n >= cycles -> break
    od;
    atomic { if :: clock_ == id -> clock_ = FREE :: else fi; fin[id] = 1 }
  } unless {
    atomic { dead[id] -> if :: lock == id -> lock = FREE :: else fi; if :: clock_ == id -> clock_ = FREE :: else fi;
             pinned[5] = 0; fin[id] = 1 } }
}

#ifdef KILL
proctype Killer() {
  if
  :: atomic { !fin[1] -> dead[1] = 1; pinned[1] = 0; printf("W1 killed\n"); if :: lock == 1 -> lock = FREE :: else fi }
#ifdef KILL2
  :: atomic { !fin[2] -> dead[2] = 1; pinned[2] = 0; printf("W2 killed\n"); if :: lock == 2 -> lock = FREE :: else fi }
#endif
#ifdef NC2
  :: atomic { !fin[6] -> dead[6] = 1; printf("C6 killed\n") }
#endif
  :: skip
  fi
}
#endif
#ifdef LOSS
proctype Loss() {
  if
  :: atomic { path == 0 -> path = NONE; printf("catalog file lost\n") }
#ifdef INPLACE
  :: /* somebody asks for a rebuild of a catalog that is still there */
     atomic { lock == FREE -> lock = 7; fin[7] = 0 }
     if :: atomic { path == 0 -> scan(); printf("explicit rebuild: scan\n") }
           if :: atomic { path == 0 -> path = 1; printf("explicit rebuild: rename over\n") } :: else fi
     :: else fi;
     atomic { lock = FREE; fin[7] = 1 }
#endif
  :: skip
  fi
}
#endif

#define HASROW (row[path] != ABSENT && phys[loc[path]] != 0)
/* acknowledged and live, but not in the catalog, or its chunk has no row or no bytes */
#define BAD1 ((acked[0] && !(HASROW && ART(path,0) == LIVE)) || (acked[1] && !(HASROW && ART(path,1) == LIVE)))
#ifdef LEASE
#define BAD2 (acked[2] && !dead[2] && !HASROW)
#else
#define BAD2 (acked[2] && !(HASROW && ART(path,2) == LIVE))
#endif
/* half there: named in the catalog, chunk has no row */
#define BAD3 ((ART(path,0) == LIVE || ART(path,1) == LIVE || ART(path,2) == LIVE) && row[path] == ABSENT)
/* a row that points at nothing */
#define BAD4 (row[path] != ABSENT && phys[loc[path]] == 0)
/* deleted, acknowledged, and back */
#define BAD5 (delacked && ART(path,0) == LIVE)
/* everybody has finished, and something is left that would stop the next collection */
#define BAD6 (fin[0] && fin[1] && fin[2] && fin[3] && fin[4] && fin[6] && fin[7] && (lock != FREE || clock_ != FREE || pinned[0] || pinned[1] || pinned[2] || pinned[3] || pinned[5]))
active proctype Monitor() {
end: if
  :: atomic { BAD6 -> printf("VIOLATION: a lock or a pin is left behind\n"); assert(0) }
  :: atomic { path != NONE && BAD1 -> printf("VIOLATION: acknowledged artifact lost\n"); assert(0) }
  :: atomic { path != NONE && BAD2 -> printf("VIOLATION: acknowledged 2 lost\n"); assert(0) }
  :: atomic { path != NONE && BAD3 -> printf("VIOLATION: half an artifact\n"); assert(0) }
  :: atomic { path != NONE && BAD4 -> printf("VIOLATION: row points at nothing\n"); assert(0) }
  :: atomic { path != NONE && BAD5 -> printf("VIOLATION: deleted artifact is back\n"); assert(0) }
  fi
}
init {
  atomic {
    row[0] = PRESENT; loc[0] = 0; epoch[0] = 1; ART(0,0) = LIVE; phys[0] = 2; acked[0] = 1;
    fin[1]=1; fin[2]=1; fin[0]=1; fin[3]=1; fin[4]=1; fin[6]=1; fin[7]=1;
#ifdef W1
    fin[1] = 0; run Writer(1);
#endif
#ifdef W2
    fin[2] = 0; run Writer(2);
#endif
#ifdef DEL
    fin[0] = 0; run Deleter();
#endif
#ifdef RD
    fin[3] = 0; run Reader();
#endif
#ifdef OPENER
    fin[4] = 0; run Opener();
#endif
#ifdef KILL_TAKER
    run TakerKiller();
#endif
#ifdef NC2
    fin[6] = 0; run Collector(6, CYC); fin[7] = 0; run Collector(7, 1);
#else
    fin[6] = 0; run Collector(6, CYC);
#endif
#ifdef KILL
    run Killer();
#endif
#ifdef LOSS
    run Loss();
#endif
  }
}
