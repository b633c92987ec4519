package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
	"github.com/miniswarm/miniswarm/trouble"
)

// errUnlocked ends the member of a node that is unlocked, to make place for one with a manager.
var errUnlocked = errors.New("the node was unlocked")

// openVault opens the keys of a manager's disk, if they are not locked. They stay open when the member fails that they were
// unlocked for. What a worker has of them is left from the time when it was a manager.
func (n *Node) openVault() error {
	if n.vault.isOpen() {
		return nil
	}
	id, err := n.credentials.Identity()
	switch {
	case err != nil:
		return err
	case id.Role == identity.Worker:
		return n.vault.discard()
	}
	return n.vault.open(nil)
}

// startLocked brings up what can run without keys: the agent keeps watch over its containers and the data plane over its
// rules, as if no manager could be reached.
func (n *Node) startLocked(st *state) error {
	if !n.serving() {
		return errors.New("the daemon is not running")
	}
	id, err := n.credentials.Identity()
	if err != nil {
		return err
	}
	m := blankMember(n, st, id.NodeID)
	m.locked = true
	if err := m.prepareAgent(); err != nil {
		return err
	}
	n.launch(m, swarm.LocalNodeStateLocked)
	n.cfg.Logger.Warn("this manager is locked: its containers go on, the manager starts with 'miniswarm unlock'", "node", id.NodeID)
	return nil
}

// Unlock implements engineapi.Local. A key that does not fit changes nothing.
func (n *Node) Unlock(_ context.Context, text string) error {
	n.changing.Lock()
	defer n.changing.Unlock()
	m := n.current()
	if m == nil || !m.locked {
		if _, err := n.Control(); err != nil {
			return err
		}
		return &requestError{http.StatusConflict, "swarm is not locked"}
	}
	key, err := identity.ParseUnlockKey(text)
	if err != nil {
		return badRequest("%v", err)
	}
	switch err := n.vault.open(key); {
	case errors.Is(err, errWrongKey), errors.Is(err, errLocked): // which an empty key gets
		return &requestError{http.StatusUnauthorized, "swarm could not be unlocked: invalid key provided"}
	case err != nil:
		return fmt.Errorf("unlock swarm: %w", err)
	}
	if _, err := n.credentials.Load(); err != nil {
		n.vault.forget()
		return fmt.Errorf("unlock swarm: %w", err)
	}
	m.stop(errUnlocked)
	<-m.done
	err = m.closeParts()
	if err == nil {
		st := *m.state // which others read until there is another member
		err = n.restart(&st)
	}
	if err != nil {
		n.fails("this manager was unlocked and could not start", err)
		return fmt.Errorf("unlock swarm: swarm component could not be started: %w", err)
	}
	n.cfg.Logger.Info("unlocked", "node", m.nodeID)
	return nil
}

const (
	// lockRetry is the pause after the keys could not be sealed as the cluster wants it.
	lockRetry = 2 * time.Second
	// rekeyPatience is how long to wait for a snapshot in the place of what older keys sealed before the cluster is asked again: the
	// unlock key may have changed meanwhile. The log of an idle cluster may not grow to where the snapshot is to be.
	rekeyPatience = 10 * time.Second
)

// followLock seals this manager's keys as the cluster says, as soon as it says so, until ctx ends.
func (g *managing) followLock(ctx context.Context) error {
	watch := g.store.Watch(64)
	defer func() { watch.Close() }()
	retry := time.NewTimer(0)
	defer retry.Stop()
	var unsealed trouble.Log
	for {
		changed := false
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-retry.C:
			changed = true
		case events, ok := <-watch.Events():
			if !ok && !errors.Is(watch.Err(), raftstore.ErrLagged) {
				return fmt.Errorf("follow the swarm's unlock key: %w", watch.Err())
			}
			if !ok { // what it missed is in the store
				watch.Close()
				watch, changed = g.store.Watch(64), true
			}
			for _, e := range events {
				changed = changed || e.Kind == cluster.KindCluster
			}
		}
		if !changed {
			continue
		}
		if err := g.sealKeys(ctx); err != nil && ctx.Err() == nil {
			if tell, lasting := unsealed.Again(time.Now(), ""); tell {
				g.member.logger.Warn("the keys of this manager are not yet sealed as the swarm wants it", "err", err, "since", lasting.Round(time.Second), "retry", lockRetry)
			}
			retry.Reset(lockRetry)
		} else {
			unsealed.Over(time.Now())
		}
	}
}

// sealKeys has the keys on disk be sealed as the cluster wants it, that of the certificate too: it lies open when the node was
// promoted or recovered.
//
// It goes by what the managers have agreed on last, not by what this one knows: one that reads its log from the
// beginning must not lock itself with a key that nobody keeps any more.
func (g *managing) sealKeys(ctx context.Context) error {
	snap, err := g.store.Read(ctx)
	if err != nil {
		return err
	}
	c := snap.Cluster()
	if c == nil {
		return nil // about to be founded
	}
	changed, err := g.member.node.vault.follow(c.UnlockKeys, c.Version.Index)
	if err != nil {
		return err
	}
	if changed {
		g.member.logger.Info("the keys of this manager follow the swarm's unlock key", "locked", len(c.UnlockKeys) > 0)
	}
	newest, older, err := g.member.node.vault.dataKeys()
	if err != nil {
		return err
	}
	bare, err := g.member.node.credentials.Bare()
	switch {
	case err != nil:
		return err
	case len(older) > 0:
		ctx, cancel := context.WithTimeout(ctx, rekeyPatience)
		defer cancel()
		if err := g.store.Rekey(ctx, newest); err != nil {
			return err
		}
	case !bare:
		return nil
	}
	if err := g.member.node.credentials.Reseal(); err != nil {
		return err
	}
	if err := g.member.node.vault.settle(newest); err != nil {
		return err
	}
	g.member.renewer.RenewNow() // its key was sealed with one that may have lain open
	return nil
}
