package role

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// stage is a machine whose disk, certificate and raft group a test plays. It writes down what its supervisor does, and when.
type stage struct {
	*Supervisor[*parts]
	stop context.CancelCauseFunc
	done chan error
	log  bytes.Buffer // read when Run has ended

	mu    sync.Mutex
	began time.Time
	role  identity.Role            // guarded by mu
	fails map[string]error         // guarded by mu; steps that fail
	takes map[string]time.Duration // guarded by mu; how long steps take
	told  []string                 // guarded by mu
	last  *parts                   // guarded by mu; those that were opened last
	raft  uint64                   // guarded by mu; raft ids that were given
}

// parts are a manager's, one for each membership.
type parts struct {
	s   *stage
	id  uint64
	end chan error
}

func (p *parts) Run(ctx context.Context) error {
	_ = p.s.step(context.Background(), "run %d", p.id)
	var err error
	select {
	case err = <-p.end:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	_ = p.s.step(context.Background(), "end %d: %v", p.id, err)
	return err
}

func (p *parts) Close() error { return p.s.step(context.Background(), "close %d", p.id) }

func (s *stage) tell(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, fmt.Sprintf("%gs ", time.Since(s.began).Seconds())+fmt.Sprintf(format, args...))
}

// step writes down what is done and does it: for as long, and with the outcome, that the test wants for the first word of it.
func (s *stage) step(ctx context.Context, format string, args ...any) error {
	s.tell(format, args...)
	what, _, _ := strings.Cut(format, " ")
	s.mu.Lock()
	takes, err := s.takes[what], s.fails[what]
	s.mu.Unlock()
	select {
	case <-time.After(takes):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *stage) Role() identity.Role {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.role
}

func (s *stage) RenewNow() { s.tell("renew") }

func (s *stage) Join(ctx context.Context) (*protocol.JoinResponse, error) {
	if err := s.step(ctx, "join"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raft++
	return &protocol.JoinResponse{RaftID: s.raft}, nil
}

func (s *stage) Forget() error { return s.step(context.Background(), "forget") }

func (s *stage) Note(a *protocol.JoinResponse) error {
	return s.step(context.Background(), "note %d", a.RaftID)
}

func (s *stage) Open(a *protocol.JoinResponse) (*parts, error) {
	if err := s.step(context.Background(), "open %d", a.RaftID); err != nil {
		return nil, err
	}
	return s.opened(a.RaftID), nil
}

func (s *stage) opened(id uint64) *parts {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = &parts{s: s, id: id, end: make(chan error, 1)}
	return s.last
}

func (s *stage) Removed(p *parts) { _ = s.step(context.Background(), "removed %d", p.id) }
func (s *stage) Retire() error    { return s.step(context.Background(), "retire") }

// certify gives the machine a certificate.
func (s *stage) certify(role identity.Role) {
	s.mu.Lock()
	before := s.role
	s.role = role
	s.mu.Unlock()
	s.Renewed(identity.Identity{Role: before}, identity.Identity{Role: role})
	synctest.Wait()
}

// ends has the parts that were opened last end by themselves.
func (s *stage) ends(err error) {
	s.mu.Lock()
	s.last.end <- err
	s.mu.Unlock()
	synctest.Wait()
}

// wait lets time pass, and all be done that is due by then.
func (s *stage) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (s *stage) failing(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails[what] = err
}

// shows writes down which parts requests are answered by.
func (s *stage) shows() {
	if p := s.Parts(); p != nil {
		s.tell("shows %d", p.id)
	} else {
		s.tell("shows none")
	}
}

func newStage(role identity.Role) *stage {
	s := &stage{role: role, began: time.Now(), done: make(chan error, 1), fails: map[string]error{}, takes: map[string]time.Duration{}, raft: 10}
	s.Supervisor = New(Config[*parts]{Machine: s, NodeID: "n1", Addr: "192.0.2.1:2377", Logger: slog.New(slog.NewTextHandler(&s.log, nil))})
	return s
}

func (s *stage) start() {
	ctx, stop := context.WithCancelCause(context.Background())
	s.stop = stop
	go func() { s.done <- s.Run(ctx) }()
	synctest.Wait()
}

var (
	errOver  = errors.New("the daemon ends")
	errOther = errors.New("the disk is full")
)

func TestRolesComeAndGo(t *testing.T) {
	const worker, manager = identity.Worker, identity.Manager
	become := func(at string, id int) []string {
		return []string{at + " join", at + " forget", fmt.Sprint(at, " note ", id), fmt.Sprint(at, " open ", id), fmt.Sprint(at, " run ", id)}
	}
	for _, c := range []struct {
		name  string
		role  identity.Role
		first bool             // it starts with parts, of member 1
		fails map[string]error // by step
		takes map[string]time.Duration
		play  func(*stage)
		want  []string
		err   error // nil: it runs on, and ends with errOver when it is told to
		warns string
	}{
		{name: "a worker has nothing of a manager and waits", role: worker, play: func(s *stage) { s.wait(time.Hour); s.shows() },
			want: []string{"0s retire", "3600s shows none"}},
		{name: "a worker whose disk keeps something waits as well", role: worker, fails: map[string]error{"retire": errOther}, play: func(s *stage) { s.wait(time.Hour) },
			want: []string{"0s retire"}, warns: "a former manager's replica is still on disk"},
		{name: "a manager starts with its replica", role: manager, first: true, play: func(s *stage) { s.shows() },
			want: []string{"0s run 1", "0s shows 1", "0s end 1: the daemon ends"}},
		{name: "a manager that has none asks for a place", role: manager, play: func(*stage) {},
			want: append(become("0s", 11), "0s end 11: the daemon ends")},
		{name: "a replica of who is a worker by now is let go", role: worker, first: true, play: func(s *stage) { s.shows() },
			want: []string{"0s close 1", "0s retire", "0s shows none"}},
		{name: "one that cannot be closed is told of", role: worker, first: true, fails: map[string]error{"close": errOther}, play: func(*stage) {},
			want: []string{"0s close 1", "0s retire"}, warns: "not closed cleanly"},
		{name: "promoted", role: worker, play: func(s *stage) { s.wait(5 * time.Second); s.certify(manager); s.shows() },
			want: slices.Concat([]string{"0s retire"}, become("5s", 11), []string{"5s shows 11", "5s end 11: the daemon ends"})},
		{name: "promoted by the leader's word, of which the certificate hears later", role: worker, play: func(s *stage) { s.Learn(manager); s.Learn(worker) },
			want: []string{"0s retire", "0s renew"}},
		{name: "demoted: requests hear at once, and the disk is cleared when all has ended", role: manager, first: true, takes: map[string]time.Duration{"end": 2 * time.Second},
			play: func(s *stage) { s.certify(worker); s.shows(); s.wait(time.Minute); s.shows() },
			want: []string{"0s run 1", "0s end 1: this node is a worker now", "0s shows none", "2s retire", "60s shows none"}},
		{name: "promoted anew before all has ended: another membership", role: manager, first: true, takes: map[string]time.Duration{"end": 2 * time.Second},
			play: func(s *stage) {
				s.certify(worker)
				s.wait(time.Second)
				s.certify(manager)
				s.shows()
				s.wait(time.Second)
			},
			want: slices.Concat([]string{"0s run 1", "0s end 1: this node is a worker now", "1s shows none"}, become("2s", 11), []string{"2s end 11: the daemon ends"})},
		{name: "a certificate of the same role changes nothing", role: manager, first: true, play: func(s *stage) { s.certify(manager); s.Learn(manager); s.shows() },
			want: []string{"0s run 1", "0s shows 1", "0s end 1: the daemon ends"}},
		{name: "to a worker and back before it is seen", role: manager, takes: map[string]time.Duration{"open": time.Second},
			play: func(s *stage) { s.certify(worker); s.certify(manager); s.wait(time.Second) },
			want: []string{"0s join", "0s forget", "0s note 11", "0s open 11", "1s run 11", "1s end 11: the daemon ends"}},
		{name: "demoted while it asks for a place", role: manager, takes: map[string]time.Duration{"join": 2 * time.Second}, play: func(s *stage) { s.certify(worker); s.wait(time.Minute) },
			want: []string{"0s join", "2s forget", "2s note 11", "2s open 11", "2s run 11", "2s end 11: this node is a worker now", "2s retire"}},
		{name: "refused a place: it asks again every second, and for what it is", role: manager, fails: map[string]error{"join": errOther},
			play: func(s *stage) { s.wait(1500 * time.Millisecond); s.certify(worker) },
			want: []string{"0s join", "0s renew", "1s join", "1s renew", "1.5s retire"}, warns: "is to be a manager and cannot yet"},
		{name: "given a place at the second time", role: manager, fails: map[string]error{"join": errOther},
			play: func(s *stage) { s.failing("join", nil); s.wait(time.Second) },
			want: slices.Concat([]string{"0s join", "0s renew"}, become("1s", 11), []string{"1s end 11: the daemon ends"}), warns: "cannot yet"},
		{name: "a replica that cannot be deleted keeps it from being noted", role: manager, fails: map[string]error{"forget": errOther}, play: func(*stage) {},
			want: []string{"0s join", "0s forget", "0s renew"}, warns: "cannot yet"},
		{name: "a membership that cannot be noted is not opened", role: manager, fails: map[string]error{"note": errOther}, play: func(*stage) {},
			want: []string{"0s join", "0s forget", "0s note 11", "0s renew"}, warns: "cannot yet"},
		{name: "a replica that cannot be opened is asked for again", role: manager, fails: map[string]error{"open": errOther}, play: func(s *stage) { s.shows(); s.failing("open", nil); s.wait(time.Second) },
			want: slices.Concat([]string{"0s join", "0s forget", "0s note 11", "0s open 11", "0s renew", "0s shows none"}, become("1s", 12), []string{"1s end 12: the daemon ends"}), warns: "cannot yet"},
		{name: "removed, and a worker by the next certificate", role: manager, first: true,
			play: func(s *stage) {
				s.ends(fmt.Errorf("the store stopped: %w", raftstore.ErrRemoved))
				s.shows()
				s.wait(time.Second)
				s.certify(worker)
			},
			want: []string{"0s run 1", "0s end 1: the store stopped: " + raftstore.ErrRemoved.Error(), "0s removed 1", "0s renew", "0s shows none", "1s retire"}, warns: "have removed this one"},
		{name: "removed, and promoted anew", role: manager, first: true, play: func(s *stage) { s.ends(raftstore.ErrRemoved); s.wait(3 * time.Second) },
			want: slices.Concat([]string{"0s run 1", "0s end 1: " + raftstore.ErrRemoved.Error(), "0s removed 1", "0s renew"}, become("3s", 11), []string{"3s end 11: the daemon ends"}), warns: "have removed this one"},
		{name: "a failure of the parts is the end", role: manager, first: true, play: func(s *stage) { s.ends(errOther); s.shows() },
			want: []string{"0s run 1", "0s end 1: the disk is full", "0s shows none"}, err: errOther},
		{name: "the daemon ends while it waits", role: manager, fails: map[string]error{"join": errOther}, play: func(s *stage) { s.wait(500 * time.Millisecond) },
			want: []string{"0s join", "0s renew"}, warns: "cannot yet"},
		{name: "the daemon ends while it asks for a place", role: manager, takes: map[string]time.Duration{"join": time.Minute}, play: func(s *stage) { s.wait(time.Second) },
			want: []string{"0s join"}},
		{name: "the daemon ends while it opens its replica, which runs and ends", role: manager, takes: map[string]time.Duration{"open": time.Second}, play: func(*stage) {},
			want: []string{"0s join", "0s forget", "0s note 11", "0s open 11", "1s run 11", "1s end 11: the daemon ends"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(c.role)
				for what, err := range c.fails {
					s.fails[what] = err
				}
				for what, d := range c.takes {
					s.takes[what] = d
				}
				if c.first {
					s.StartWith(s.opened(1))
				}
				s.start()
				c.play(s)
				if c.err == nil {
					select {
					case err := <-s.done:
						t.Errorf("it ends by itself with %v", err)
					default:
					}
					c.err = errOver
				}
				s.stop(errOver)
				if err := <-s.done; !errors.Is(err, c.err) {
					t.Errorf("it ends with %v, want %v", err, c.err)
				}
				if !slices.Equal(s.told, c.want) {
					t.Errorf("it did\n\t%s\nand should have done\n\t%s", strings.Join(s.told, "\n\t"), strings.Join(c.want, "\n\t"))
				}
				if s.Parts() != nil {
					t.Error("it shows parts still")
				}
				if warned := strings.Contains(s.log.String(), "level=WARN"); warned != (c.warns != "") || !strings.Contains(s.log.String(), c.warns) {
					t.Errorf("it is to warn of %q and logs\n%s", c.warns, s.log.String())
				}
			})
		})
	}
}

// TestADaemonThatEndsBeforeItBegins: another part of the node has failed at once, and the replica that was opened is closed.
func TestADaemonThatEndsBeforeItBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(identity.Manager)
		s.StartWith(s.opened(1))
		ctx, stop := context.WithCancelCause(t.Context())
		stop(errOver)
		if err := s.Run(ctx); !errors.Is(err, errOver) || s.Parts() != nil || !slices.Equal(s.told, []string{"0s close 1"}) {
			t.Errorf("it ends with %v and has done %v; parts: %v", err, s.told, s.Parts())
		}
	})
}

// TestWhoIsToManage: the leader's word counts as long as the certificate is on its way, and the certificate in any case.
func TestWhoIsToManage(t *testing.T) {
	for _, c := range []struct {
		certificate, wanted identity.Role
		want                bool
	}{
		{identity.Worker, "", false}, {identity.Worker, identity.Worker, false}, {identity.Worker, identity.Manager, true},
		{identity.Manager, "", true}, {identity.Manager, identity.Worker, true}, {identity.Manager, identity.Manager, true},
	} {
		s := newStage(c.certificate)
		if c.wanted != "" {
			s.Learn(c.wanted)
		}
		if got := s.ToManage(); got != c.want {
			t.Errorf("certificate %q, wanted %q: %v", c.certificate, c.wanted, got)
		}
		if renews := len(s.told) > 0; renews != (c.wanted != "" && c.wanted != c.certificate) {
			t.Errorf("certificate %q, wanted %q: renews: %v", c.certificate, c.wanted, renews)
		}
	}
}

// TestEachPromotionHasItsOwnTrouble: a promotion that was taken back before it came to anything is over, and another one that has the same
// trouble a day later says so at once, and since when.
func TestEachPromotionHasItsOwnTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(identity.Manager)
		s.failing("join", errOther)
		s.start()
		s.certify(identity.Worker)
		s.wait(24*time.Hour + time.Second)
		before := strings.Count(s.log.String(), "cannot yet")
		s.certify(identity.Manager)
		s.stop(errOver)
		<-s.done
		if got := s.log.String(); before != 1 || strings.Count(got, "cannot yet") != 2 || strings.Count(got, "since=0s") != 2 {
			t.Errorf("it logs\n%s", got)
		}
	})
}
