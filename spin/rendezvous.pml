/* The rendezvous protocol for three nodes, as a model for spin.
 *
 * A node is one process. Each of its steps is one request to the store with all
 * that the node decides on the answer; between two steps anything may happen.
 * What a node knows is its own copy. There is no time: silence is an event that
 * may be noticed at any moment after a crash, and falsely SUSPECTS times.
 *
 * docs/model.md says what is covered, what is left out, and where each piece
 * stands in the code. check.py runs every configuration and every mutant.
 */

#ifndef MIN
#define MIN 2 /* min_nodes */
#endif
#ifndef MAX
#define MAX 3 /* max_nodes */
#endif
#ifndef ROUNDS
#define ROUNDS 3 /* no round completes beyond this one */
#endif
#ifndef CRASHES
#define CRASHES 1 /* nodes that die at any moment */
#endif
#ifndef LEAVES
#define LEAVES 0 /* nodes that leave of their own accord */
#endif
#ifndef CLOSES
#define CLOSES 0 /* calls that close the run */
#endif
#ifndef RETURNS
#define RETURNS 0 /* participants that come back although nobody told them to */
#endif
#ifndef SUSPECTS
#define SUSPECTS 0 /* times that a living node is taken for dead */
#endif

#define NOBODY 3
#define ALL    7

/* A set of nodes is three bits. */
#define bit_of(x)    (1 << (x))
#define has(set, x)  (((set) >> (x)) & 1)
#define size_of(set) (((set) & 1) + (((set) >> 1) & 1) + (((set) >> 2) & 1))

/* A membership is two bits a node: its rank, or 3 where it is no member. */
#define NO_MEMBERS        63
#define rank_of(x, ranks) (((ranks) >> (2 * (x))) & 3)
#define is_in(x, ranks)   (rank_of(x, ranks) != 3)
#define members_of(ranks) (is_in(0, ranks) | (is_in(1, ranks) << 1) | (is_in(2, ranks) << 2))

/* ---------------------------------------------------------------- the store */

typedef Document {
    bit there;
    bit change; /* the reason does not matter here */
    bit closed;
    unsigned leader : 2;
    unsigned round : 2;
    unsigned master : 2; /* for which round's workers the address is; 0: none */
};

/* What a completed round's nonce names. */
typedef Piece {
    bit published;
    unsigned ranks : 6;
    unsigned current : 3; /* members whose rank is under their newest ticket */
    unsigned agreed : 6;  /* ghost: the membership as it was committed */
};

Document doc;
Piece piece[4];       /* by round */
unsigned fresh : 3;   /* the nodes whose token is good: nobody has written since */

/* The log, folded: of one node only the newest record counts. */
unsigned entered : 3; /* whose newest record says that it came, or came back */
unsigned gone : 3;    /* whose newest record says that it left */
unsigned hole : 3;    /* whose ticket has no record yet */
unsigned grave : 3;   /* whose ticket was buried before its record came */

/* ---------------------------------------------------------------- the nodes */

#define IDLE      0  /* has not joined */
#define ENTERING  1  /* about to take a ticket */
#define TICKET    2  /* has a ticket, and has not written its record */
#define WAITING   3  /* waits for a round, or is a spare */
#define RANKING   4  /* knows of a new round, asks for its rank */
#define BOOTING   5  /* has a rank, waits for the address of the workers' store */
#define MEMBER    6  /* has returned from the round */
#define LEAVING   7  /* has a ticket for its departure */
#define LEFT      8  /* has written that it leaves, may have the lead to hand over */
#define GONE      9  /* its process has ended */
#define DEAD      10 /* has crashed */

typedef Node {
    unsigned phase : 4;
    /* its copy of the document */
    bit change;
    bit closed;
    unsigned leader : 2;
    unsigned round : 2;
    unsigned master : 2;
    /* itself */
    unsigned rank : 2;
    unsigned last : 2;    /* the round that it returned from last */
    unsigned closing : 3; /* it closes the run unless that is beyond this round */
    bit silent;           /* was taken for dead, and can tell from its own clock */
    bit late;             /* ghost: this join began after a close had returned */
    /* as leader: the participants of round `base`, and the log since */
    bit leading;
    bit synced;
    unsigned base : 2;
    unsigned usurped : 2; /* whom it replaces, and will not wait for */
    unsigned here : 3;    /* participants whose workers run */
    unsigned back : 3;    /* participants that have come back */
    unsigned left : 3;    /* participants that have left */
    unsigned new : 3;     /* arrived since */
    unsigned lost : 3;    /* those of them that are silent */
    unsigned unread : 3;  /* whose newest record it has not read */
    unsigned job : 2;     /* a round on its way */
    unsigned offer : 6;   /* its membership */
    unsigned saw : 3;     /* ghost: who had entered, at the last look */
};

#define LOOKED    1
#define PUBLISHED 2
#define FORCED    4 /* closing: whatever the round */

Node n[3];
unsigned crashes : 1;
unsigned leaves : 1;
unsigned closes : 1;
unsigned returns : 2;
unsigned suspects : 2;
bit close_returned; /* ghost */

hidden byte each, number, first, second, third, whose, rest; /* scratch within one step */
hidden byte pick;

/* For spin -t, which tells a counterexample step by step. */
#define say(what) printf(what, me)

/* Never set: so that what pan says of a violation names the promise. */
hidden byte S2, S3, S4, S5, S6, S7, S8, S11, L, witness;
#define holds(promise, what) assert(promise || (what))

#define me_bit        bit_of(me)
#define dead(x)       (n[x].phase == DEAD || n[x].phase == GONE)
#define in_roster(x)  (n[x].phase >= WAITING && n[x].phase <= MEMBER)
#define takes_part(x) (n[x].phase >= ENTERING && n[x].phase <= MEMBER)

/* What a leader knows: leadership.Roster and decide(). */
#define here_(x) (n[x].here & ~n[x].lost)
#define back_(x) (n[x].back & ~n[x].lost)
#define new_(x)  (n[x].new & ~n[x].lost)
#define known(x) (n[x].here | n[x].back | n[x].new)
#define can_complete(x) \
    (n[x].round < ROUNDS && !here_(x) && size_of(back_(x) | new_(x)) >= AT_LEAST)
#define must_reopen(x) \
    (here_(x) && !n[x].change && \
     (back_(x) || n[x].left || \
      (size_of(here_(x) | back_(x) | new_(x)) >= MIN && \
       (LOSSES(x) || (new_(x) && size_of(here_(x) | back_(x)) < MAX)))))
#define token_good(x) has(fresh, x)
#define leads(x) (n[x].leading && n[x].leader == x && in_roster(x) && !n[x].job && !n[x].closed)
#define losable(x, by) \
    (by != x && has(known(by) & ~n[by].lost, x) && (dead(x) || suspects))
#define buriable(x) (has(hole, x) && (dead(x) || suspects))
#define heir(x, by) (by != x && n[by].synced && has(known(by) & ~n[by].lost, x))
#define finds_rank(x) \
    (piece[n[x].round].published && is_in(x, piece[n[x].round].ranks) && \
     has(piece[n[x].round].current, x))

/* ---------------------------------------------------------------- mutants */

#ifdef EARLY
#define AT_LEAST 1
#else
#define AT_LEAST MIN
#endif
#ifdef NO_REOPEN
#define LOSSES(x) 0
#else
#define LOSSES(x) (n[x].lost & (n[x].here | n[x].back))
#endif
#ifdef NO_TOKEN
#define MAY_COMMIT(x) 1
#else
#define MAY_COMMIT(x) token_good(x)
#endif
#ifdef USURP_BLINDLY
#define MAY_USURP(x) 1
#else
#define MAY_USURP(x) token_good(x)
#endif
#ifdef CLOSE_FORGOTTEN
#define CLOSED_ALONG(x) 0
#define RUN_GOES_ON(x) 1
#else
#define CLOSED_ALONG(x) n[x].closed
#define RUN_GOES_ON(x) (!n[x].closed)
#endif
#ifdef STALE_MASTER
#define MASTER_ALONG(x) n[x].master
#else
#define MASTER_ALONG(x) 0
#endif

#ifdef LATCH_MISSED
#define LATCHED(x) n[x].change
#else
#define LATCHED(x) (n[x].change || n[x].round > n[x].last)
#endif
#ifdef LOST_UNSEEN
#define STILL_SILENT(x) 1
#else
#define STILL_SILENT(x) (dead(x) || n[x].silent)
#endif
#ifdef EVICTED_CLOSES
#define BEYOND(x) 0
#else
#define BEYOND(x) (n[x].closing != FORCED && n[x].round > n[x].last)
#endif

/* ---------------------------------------------------------------- the document */

/* A node's write is in effect: every other token is bad from now on. */
inline put(a_leader, a_round, a_change, a_closed, a_master) {
    holds(S8, !doc.closed || (a_closed)); /* closed stays closed */
    holds(S6, (a_round) >= doc.round); /* rounds only grow */
    doc.leader = a_leader;
    doc.round = a_round;
    doc.change = a_change;
    doc.closed = a_closed;
    doc.master = a_master;
    fresh = me_bit;
    printf("      document: leader %d, round %d, change %d, closed %d, master of round %d\n",
        doc.leader, doc.round, doc.change, doc.closed, doc.master)
}

/* What nobody can refer to any more is forgotten, here at once. */
inline forget() {
    for (each : 1 .. 3) {
        if
        :: each < doc.round &&
           !(n[0].round == each || n[1].round == each || n[2].round == each) &&
           !(n[0].base == each || n[1].base == each || n[2].base == each) ->
            piece[each].published = 0;
            piece[each].ranks = 0;
            piece[each].current = 0;
            piece[each].agreed = 0
        :: else
        fi
    }
    skip /* a loop cannot be the end of a step */
}

inline end_term() {
    n[me].leading = 0;
    n[me].synced = 0;
    n[me].base = 0;
    n[me].usurped = 0;
    n[me].here = 0;
    n[me].back = 0;
    n[me].left = 0;
    n[me].new = 0;
    n[me].lost = 0;
    n[me].unread = 0;
}

inline end_job() {
    n[me].job = 0;
    n[me].offer = 0;
    n[me].saw = 0;
}

/* The node's process is gone, and all that it knew. */
inline vanish(into) {
    end_term();
    end_job();
    n[me].phase = into;
    n[me].change = 0;
    n[me].closed = 0;
    n[me].leader = 0;
    n[me].round = 0;
    n[me].master = 0;
    n[me].rank = 0;
    n[me].last = 0;
    n[me].closing = 0;
    n[me].silent = 0;
    n[me].late = 0;
    fresh = fresh & ~me_bit;
    forget();
}

/* machine._complete: the call returns. */
inline join_returns() {
    printf("node %d returns from its join: round %d, rank %d\n", me, n[me].round, n[me].rank);
    holds(S6, n[me].round > n[me].last);
    holds(S2, n[me].rank == rank_of(me, piece[n[me].round].agreed));
    holds(S2, n[me].master == n[me].round); /* this round's master */
    holds(S8, !n[me].late);
    n[me].last = n[me].round;
    n[me].rank = 0;
    n[me].phase = MEMBER;
}

/* machine._take: the document is known to be this. */
inline take() {
    say("node %d knows the document\n");
    number = n[me].round;
    n[me].leader = doc.leader;
    n[me].round = doc.round;
    n[me].change = doc.change;
    n[me].closed = doc.closed;
    n[me].master = doc.master;
    fresh = fresh | me_bit;
    if
    :: n[me].leader == me && takes_part(me) ->
        if
        :: !n[me].leading ->
            n[me].leading = 1;
            n[me].usurped = NOBODY
#if !defined(TERM_KEPT) && !defined(OLD_ROSTER)
        :: n[me].leading && n[me].synced && n[me].base != n[me].round ->
            /* Others have led meanwhile, and completed a round. */
            end_term();
            n[me].leading = 1;
            n[me].usurped = NOBODY
#endif
        :: else
        fi
#ifdef OLD_ROSTER
    :: else /* keeps what it knew of the roster, in case that it leads again */
#else
    :: else -> end_term()
#endif
    fi;
    if
    :: n[me].closed ->
        if
        :: n[me].phase >= ENTERING && n[me].phase <= BOOTING -> vanish(GONE)
        :: n[me].phase == MEMBER -> end_term()
        :: else
        fi
    :: else ->
        if
        :: n[me].phase == WAITING && n[me].round > number -> n[me].phase = RANKING
        :: n[me].phase == RANKING && n[me].round != number -> n[me].phase = ENTERING
        :: n[me].phase == BOOTING && n[me].round == number && n[me].master -> join_returns()
        :: n[me].phase == BOOTING && (n[me].round != number || (n[me].change && !n[me].master)) ->
            n[me].phase = ENTERING;
            n[me].rank = 0
        :: else
        fi
    fi;
    forget()
}

/* ---------------------------------------------------------------- the leader */

/* A node is taken for dead; a living one will know from its own clock. */
inline suspect(whom) {
    if
    :: dead(whom)
    :: else ->
        suspects--;
        n[whom].silent = 1
    fi
}

inline lose(whom) {
    printf("leader %d takes for dead node %d\n", me, whom);
    n[me].lost = n[me].lost | bit_of(whom);
    suspect(whom)
}

inline find(whom) {
    printf("leader %d hears the beat again of node %d\n", me, whom);
    n[me].lost = n[me].lost & ~bit_of(whom)
}

/* A hole is filled; who was only slow finds the grave. */
inline bury(whom) {
    printf("leader %d buries the ticket of node %d\n", me, whom);
    hole = hole & ~bit_of(whom);
    if
    :: dead(whom)
    :: else ->
        suspects--;
        grave = grave | bit_of(whom)
    fi
}

/* Leading.start: what the last completed round handed on, and the log after it. */
inline synchronise() {
    say("leader %d reads roster and log\n");
    n[me].base = n[me].round;
    first = (n[me].base -> members_of(piece[n[me].base].ranks) : 0);
    n[me].here = first & ~entered & ~gone;
    n[me].back = first & entered;
    n[me].left = first & gone;
    n[me].new = entered & ~first;
    n[me].synced = 1;
    if
    :: n[me].usurped != NOBODY && has(known(me), n[me].usurped) && STILL_SILENT(n[me].usurped) ->
        n[me].lost = bit_of(n[me].usurped)
    :: else
    fi;
    n[me].usurped = 0
}

/* Roster.fold: the records that have come since. */
inline fold() {
    say("leader %d reads the log\n");
    first = n[me].here | n[me].back | n[me].left;
    second = entered & n[me].unread;
    third = gone & n[me].unread;
    n[me].lost = n[me].lost & ~(second | third);
    n[me].here = n[me].here & ~(second | third);
    n[me].back = (n[me].back & ~third) | (second & first);
    n[me].left = (n[me].left & ~second) | (third & first);
    n[me].new = (n[me].new & ~third) | (second & ~first);
    n[me].unread = 0
}

inline give_rank(a_node, a_rank) {
    n[me].offer = n[me].offer & ~((3 ^ (a_rank)) << (2 * (a_node)))
}

/* leadership.assign_ranks: who stays keeps the order and, where there is room, the
 * rank; newcomers fill the gaps, the leader first. What the code does by ticket is
 * `pick` here, any order: who of the newcomers is left out, and who comes first. */
inline make_offer() {
    first = back_(me);
    second = new_(me);
#ifndef NO_LIMIT
    if
    :: pick % 4 != NOBODY -> second = second & ~bit_of(pick % 4)
    :: else
    fi;
#endif
    n[me].offer = NO_MEMBERS;
    n[me].saw = entered;
    third = size_of(first | second);
    rest = size_of(first);
    number = 0;
    for (each : 0 .. 2) { /* by the rank of the round before */
        for (whose : 0 .. 2) {
            if
            :: has(first, whose) && rank_of(whose, piece[n[me].base].ranks) == each ->
                if
#ifdef OLD_RANK
                :: number = each
#else
                :: rest == size_of(first) -> number = 0
                :: rest < size_of(first) && each < third - rest && each > number -> number = each
                :: rest < size_of(first) && each >= third - rest && third - rest > number -> number = third - rest
                :: else
#endif
                fi;
                give_rank(whose, number);
                number++;
                rest--
            :: else
            fi
        }
    }
    for (each : 0 .. 3) {
        whose = (each == 0 -> me : (pick < 4 -> each - 1 : 3 - each));
        if
        :: has(second, whose) ->
            second = second & ~bit_of(whose);
            number = 0;
            do
            :: rank_of(0, n[me].offer) == number || rank_of(1, n[me].offer) == number ||
               rank_of(2, n[me].offer) == number -> number++
            :: else -> break
            od;
            give_rank(whose, number)
        :: else
        fi
    }
}

/* The committed round, in the store and in the leader's roster. */
inline complete() {
    printf("leader %d commits ranks of nodes 0, 1, 2: %d, %d, %d (3: no member)\n", me, rank_of(0, n[me].offer),
        rank_of(1, n[me].offer), rank_of(2, n[me].offer));
    first = members_of(n[me].offer);
    third = size_of(first);
    holds(S7, doc.leader == me); /* only the leader it names commits */
    holds(S6, n[me].round == doc.round); /* one membership a round */
    holds(S4, third >= MIN && third <= MAX);
    holds(S5, (first & ~n[me].saw) == 0);
    second = 0;
    for (each : 0 .. 2) {
        if
        :: has(first, each) -> second = second | bit_of(rank_of(each, n[me].offer))
        :: else
        fi
    }
    holds(S3, second == bit_of(third) - 1);
#ifdef THIRD_ROUND
    holds(witness, doc.round < 2);
#endif
#ifdef PLACE_TAKEN
    holds(witness, !(LOSSES(me) && (n[me].new & first)));
#endif
    number = n[me].round + 1;
    rest = (pick -> number : MASTER_ALONG(me));
    put(me, number, 0, CLOSED_ALONG(me), rest);
    piece[number].agreed = n[me].offer;
    piece[number].current = first & ~n[me].unread;
#ifndef PUBLISH_LATE
    piece[number].ranks = n[me].offer;
    piece[number].published = 1;
#endif
    /* Records that this leader has read are summed up in what the nonce names: the
     * members, and who waits. Those of lost nodes are forgotten. */
    second = n[me].new & ~n[me].lost & ~first;
    entered = entered & (n[me].unread | second);
    gone = gone & n[me].unread;
    n[me].base = number;
#ifdef SPARE_COUNTS
    n[me].here = first | second;
#else
    n[me].here = first;
#endif
    n[me].back = 0;
    n[me].left = 0;
    n[me].new = second;
    n[me].lost = 0;
#ifdef HOLE_PASSED
    grave = grave | hole;
    hole = 0
#endif
}

/* The leader has a place in the round that it has just committed. */
inline own_round(a_rank) {
    n[me].phase = BOOTING;
    n[me].rank = a_rank;
    if
    :: n[me].master -> join_returns()
    :: else
    fi
}

inline take_ticket() {
    say("node %d takes a ticket\n");
    n[me].phase = TICKET;
    hole = hole | me_bit
}

inline log_grows() {
    hole = hole & ~me_bit;
    for (each : 0 .. 2) {
        if
        :: n[each].leading && n[each].synced -> n[each].unread = n[each].unread | me_bit
        :: else
        fi
    }
    for (each : 1 .. 3) {
        piece[each].current = piece[each].current & ~me_bit
    }
}

inline closing_returns() {
    say("node %d knows that the run is closed\n");
    close_returned = 1;
    if
    :: n[me].closing == FORCED -> n[me].closing = 0
    :: else -> vanish(GONE) /* a shutdown goes on to leave; there is nobody to be told */
    fi
}

inline close_for(a_reason) {
    holds(S11, a_reason); /* one node's end is not the run's */
    put(n[me].leader, n[me].round, n[me].change, 1, n[me].master)
}

inline leave() {
    say("node %d leaves\n");
    n[me].phase = LEAVING;
    n[me].rank = 0;
    hole = hole | me_bit
}

/* ---------------------------------------------------------------- a node */

proctype node(byte me) {
end:
    do
    /* SwapDocument: the first request creates the document, or tells what it is. */
    :: d_step { n[me].phase == IDLE && !n[me].closing ->
        say("node %d joins\n");
        n[me].late = close_returned;
        n[me].phase = ENTERING;
        if
        :: !doc.there ->
            doc.there = 1;
            put(me, 0, 0, 0, 0);
            take();
            n[me].synced = 1;
            n[me].usurped = 0
        :: else -> take()
        fi
    }

    /* Enter, its first request: a ticket. */
    :: d_step { n[me].phase == ENTERING || (n[me].phase == WAITING && n[me].silent && !n[me].job) ->
        take_ticket()
    }
    :: d_step { n[me].phase == MEMBER && !n[me].job && !n[me].closed && !n[me].closing &&
                (LATCHED(me) || (returns && doc.round < ROUNDS)) ->
        if
        :: LATCHED(me)
        :: else -> returns--
        fi;
        n[me].late = close_returned;
        take_ticket()
    }

    /* Enter, its second request: the record, unless the ticket was buried. */
    :: d_step { n[me].phase == TICKET ->
        if
        :: !has(grave, me) ->
            n[me].phase = WAITING;
            n[me].silent = 0;
            entered = entered | me_bit;
            gone = gone & ~me_bit;
            say("node %d writes its record\n");
            log_grows()
        :: else ->
            say("node %d finds its ticket buried\n");
            grave = grave & ~me_bit;
#if defined(GRAVE_TRUSTED) || defined(HOLE_PASSED)
            n[me].phase = WAITING
#else
            n[me].phase = ENTERING
#endif
        fi
    }

    /* Read, or the watch: the document has changed. */
    :: d_step { in_roster(me) && !n[me].job && !token_good(me) -> take() }

    /* ReadPiece: its rank, or that the round is without it. */
    :: d_step { n[me].phase == RANKING && !n[me].job && finds_rank(me) ->
        n[me].phase = BOOTING;
        n[me].rank = rank_of(me, piece[n[me].round].ranks);
        printf("node %d reads its rank: %d in round %d\n", me, n[me].rank, n[me].round);
        if
        :: n[me].master -> join_returns()
        :: !n[me].master && n[me].change ->
            n[me].phase = ENTERING;
            n[me].rank = 0
        :: else
        fi
    }
    :: d_step { n[me].phase == RANKING && !n[me].job &&
                (!finds_rank(me) || n[me].round < doc.round) -> /* or it is freed already */
        say("node %d finds no rank\n");
        holds(S2, n[me].round < doc.round || piece[n[me].round].published);
        n[me].phase = WAITING
    }

    /* SwapDocument: rank 0 publishes the address of the workers' store. */
    :: d_step { n[me].phase == BOOTING && !n[me].job && n[me].rank == 0 &&
                !n[me].master && !n[me].change ->
        say("node %d publishes the address of its store\n");
        if
        :: token_good(me) -> put(n[me].leader, n[me].round, 0, n[me].closed, n[me].round)
        :: else
        fi;
        take()
    }

    /* SwapDocument: takes over from a leader that is silent, or has gone. */
    :: d_step { in_roster(me) && !n[me].job && n[me].leader != me && RUN_GOES_ON(me) &&
                MAY_USURP(me) &&
                (n[me].leader == NOBODY || dead(n[me].leader) || suspects) ->
        first = n[me].leader;
        printf("node %d takes over from node %d\n", me, first);
        if
        :: first != NOBODY -> suspect(first)
        :: else
        fi;
        put(me, n[me].round, n[me].change, CLOSED_ALONG(me), n[me].master);
        take();
        if
        :: n[me].leading && !n[me].synced -> n[me].usurped = first
        :: else
        fi
    }

    /* ReadRoster and ReadLog: a term begins. */
    :: d_step { leads(me) && !n[me].synced && n[me].round == doc.round -> synchronise() }

    /* ReadLog: records have come; or the last look, where a round can complete. */
    :: atomic { leads(me) && n[me].synced && (n[me].unread || can_complete(me)) ->
#ifdef NO_LAST_LOOK
        if
        :: can_complete(me)
        :: else -> d_step { fold() }
        fi;
#else
        d_step { fold() };
#endif
        if
        :: can_complete(me) ->
            if
            :: size_of(back_(me) | new_(me)) <= MAX -> pick = 3
            :: size_of(back_(me) | new_(me)) <= MAX && size_of(new_(me) & ~me_bit) == 2 -> pick = 7
            :: size_of(back_(me) | new_(me)) > MAX && has(new_(me), 0) -> pick = 0
            :: size_of(back_(me) | new_(me)) > MAX && has(new_(me), 1) -> pick = 1
            :: size_of(back_(me) | new_(me)) > MAX && has(new_(me), 2) -> pick = 2
            :: size_of(back_(me) | new_(me)) > MAX && has(new_(me), me) -> pick = 4 + me
            fi;
            d_step {
                say("leader %d has decided to complete a round\n");
                make_offer();
                n[me].job = LOOKED
            }
        :: else
        fi
    }

    /* Publish: under a nonce that nobody else knows yet. */
    :: d_step { n[me].job == LOOKED ->
        say("leader %d publishes an assignment\n");
#ifdef NONCE_REUSED
        piece[n[me].round + 1].ranks = n[me].offer;
#endif
        n[me].job = PUBLISHED
    }

    /* SwapDocument: the commit, lost or won. */
    :: d_step { n[me].job == PUBLISHED && !MAY_COMMIT(me) ->
        say("node %d would commit, and is told that it lost\n");
#ifdef ZOMBIE
        holds(witness, 0);
#endif
#ifdef EQUAL_BYTES
        if
        :: doc.round == n[me].round + 1 && n[me].phase == WAITING && is_in(me, n[me].offer) ->
            first = rank_of(me, n[me].offer);
            end_job();
            take();
            own_round(first)
        :: else ->
            end_job();
            take()
        fi
#else
        end_job();
        take()
#endif
    }
    :: atomic { n[me].job == PUBLISHED && MAY_COMMIT(me) ->
        if
        :: pick = 0
        :: rank_of(me, n[me].offer) == 0 -> pick = 1 /* its store for the workers is open already */
        fi;
        d_step {
            complete();
            end_job();
            first = n[me].phase;
            take();
            if
            :: first == WAITING && is_in(me, piece[n[me].round].agreed) ->
                own_round(rank_of(me, piece[n[me].round].agreed))
            :: else
            fi
        }
    }
#ifdef PUBLISH_LATE
    :: d_step { n[me].leading && n[me].base && !piece[n[me].base].published ->
        piece[n[me].base].ranks = piece[n[me].base].agreed;
        piece[n[me].base].published = 1
    }
#endif

    /* SwapDocument: the round has to be formed anew. */
    :: d_step { leads(me) && n[me].synced && must_reopen(me) ->
        say("leader %d reopens the round\n");
        if
        :: token_good(me) -> put(me, n[me].round, 1, n[me].closed, n[me].master)
        :: else
        fi;
        take()
    }

    /* ReadBeats: somebody is silent, or beats again. */
    :: d_step { leads(me) && n[me].synced && losable(0, me) -> lose(0) }
    :: d_step { leads(me) && n[me].synced && losable(1, me) -> lose(1) }
    :: d_step { leads(me) && n[me].synced && losable(2, me) -> lose(2) }
#if SUSPECTS
    :: d_step { leads(me) && has(n[me].lost, 0) && !dead(0) -> find(0) }
    :: d_step { leads(me) && has(n[me].lost, 1) && !dead(1) -> find(1) }
    :: d_step { leads(me) && has(n[me].lost, 2) && !dead(2) -> find(2) }
#endif

#ifndef HOLE_STAYS
    /* Bury: a hole is old; its node has died, or was only slow. */
    :: d_step { leads(me) && n[me].synced && buriable(0) -> bury(0) }
    :: d_step { leads(me) && n[me].synced && buriable(1) -> bury(1) }
    :: d_step { leads(me) && n[me].synced && buriable(2) -> bury(2) }
#endif

#if LEAVES
    /* Leave: a ticket and a record, and then the lead goes to somebody else. */
    :: d_step { leaves && in_roster(me) && !n[me].job && !n[me].closing ->
        leaves--;
#ifdef SPARE_CLOSES
        if
        :: token_good(me) && n[me].phase == WAITING && n[me].round ->
            close_for(n[me].phase == MEMBER)
        :: else
        fi;
#endif
        leave()
    }
#endif
#if LEAVES || CLOSES
    :: d_step { n[me].phase == LEAVING ->
        if
        :: !has(grave, me) ->
            n[me].phase = LEFT;
            entered = entered & ~me_bit;
            gone = gone | me_bit;
            say("node %d writes that it leaves\n");
            log_grows()
        :: else -> /* another ticket */
            grave = grave & ~me_bit;
            hole = hole | me_bit
        fi
    }
    :: atomic { n[me].phase == LEFT && n[me].leader == me && !n[me].closed ->
        if
        :: heir(0, me) -> pick = 0
        :: heir(1, me) -> pick = 1
        :: heir(2, me) -> pick = 2
        :: pick = NOBODY /* it has seen no beat of them lately */
        fi;
        d_step {
            printf("node %d hands over to node %d\n", me, pick);
            if
            :: token_good(me) ->
                put(pick, n[me].round, n[me].change, n[me].closed, n[me].master)
            :: else
            fi;
            take()
        }
    }
    :: d_step { n[me].phase == LEFT && (n[me].leader != me || n[me].closed) -> vanish(GONE) }
#endif

#if CLOSES
    /* Close: set_closed(), by a participant or by one that never joined ... */
    :: d_step { closes && (n[me].phase == MEMBER || n[me].phase == IDLE) &&
                !n[me].job && !n[me].closed ->
        closes--;
        say("node %d begins to close the run\n");
        n[me].closing = FORCED
    }
    /* ... or shutdown(), by a participant of what it takes for the newest round. */
    :: d_step { closes && n[me].phase == MEMBER && n[me].round == n[me].last &&
                !n[me].job && !n[me].closed ->
        closes--;
        say("node %d begins its shutdown\n");
        n[me].closing = n[me].last
    }
    :: d_step { n[me].closing ->
        if
        :: !doc.there ->
            doc.there = 1;
            put(NOBODY, 0, 0, 1, 0);
            closing_returns()
        :: doc.there && n[me].closed -> closing_returns()
        :: doc.there && !n[me].closed && BEYOND(me) -> /* its end is not theirs */
            n[me].closing = 0;
            leave()
        :: doc.there && !n[me].closed && !BEYOND(me) ->
            if
            :: token_good(me) -> close_for(n[me].closing == FORCED || doc.round == n[me].last)
            :: else
            fi;
            take()
        fi
    }
#endif

#if CRASHES
    :: d_step { crashes && n[me].phase >= ENTERING && n[me].phase <= LEFT ->
        crashes--;
        say("node %d dies\n");
        grave = grave & ~me_bit;
        vanish(DEAD)
    }
#endif
    od
}

/* ---------------------------------------------------------------- what has to come */

#define living  (in_roster(0) | (in_roster(1) << 1) | (in_roster(2) << 2))
#define waits   ((n[0].phase == WAITING) | ((n[1].phase == WAITING) << 1) | ((n[2].phase == WAITING) << 2))
#define members ((n[0].phase == MEMBER) | ((n[1].phase == MEMBER) << 1) | ((n[2].phase == MEMBER) << 2))

/* L: the run is closed and nobody waits; or too few nodes live; or a round stands of
 * living participants who have all returned from it, nobody waits who would fit, and
 * no hole is left. (Or the model's bound on rounds is reached.) */
#define settled \
    (doc.there && \
     (n[0].phase == GONE || n[0].phase == DEAD || in_roster(0)) && \
     (n[1].phase == GONE || n[1].phase == DEAD || in_roster(1)) && \
     (n[2].phase == GONE || n[2].phase == DEAD || in_roster(2)) && \
     ((doc.closed && !(living & ~members)) || \
      (!doc.closed && size_of(living) < MIN) || \
      (!doc.closed && doc.round == ROUNDS && \
       (doc.change || members_of(piece[doc.round].agreed) != members)) || \
      (!doc.closed && doc.round && !doc.change && !hole && \
       living == (members | waits) && \
       members_of(piece[doc.round].agreed) == members && \
       (!waits || size_of(members) == MAX))))

#ifdef LIVENESS
ltl settles { <> [] settled }
#else
proctype watcher() {
end:
    timeout -> holds(L, settled)
}
#endif

init {
    atomic {
        suspects = SUSPECTS;
        /* What may happen need not. */
        if
        :: crashes = 0
        :: crashes = CRASHES
        fi;
        if
        :: leaves = 0
        :: leaves = LEAVES
        fi;
        if
        :: closes = 0
        :: closes = CLOSES
        fi;
        if
        :: returns = 0
        :: returns = RETURNS
        fi;
#ifndef LIVENESS
        run watcher();
#endif
        run node(0);
        run node(1);
        run node(2)
    }
}
