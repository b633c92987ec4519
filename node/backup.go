package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"github.com/miniswarm/miniswarm/manager/backup"
	"github.com/miniswarm/miniswarm/raftstore"
)

// backupPatience is how long a backup waits for a leader.
const backupPatience = 10 * time.Second

// Backup implements engineapi.Local: it writes a sealed backup of the cluster as it is at a moment after the call. Nothing
// waits for it, and every manager can do it.
func (n *Node) Backup(ctx context.Context, secret string, w io.Writer) error {
	if _, err := n.Control(); err != nil {
		return err
	}
	g := n.managing()
	if g == nil {
		return unavailable(textNoReady) // it has changed in between
	}
	s, err := backup.ParseSecret(secret)
	if err != nil {
		return badRequest("%v", err)
	}
	reading, cancel := context.WithTimeout(ctx, backupPatience)
	defer cancel()
	x, err := g.store.Export(reading)
	if err != nil {
		return unavailable("back up the cluster: %v; 'miniswarm recover' makes a cluster of this manager alone if the others are lost", err)
	}
	c := x.Snapshot.Cluster()
	if c == nil {
		return unavailable(textNoReady)
	}
	out, err := backup.NewWriter(w, s, backup.Manifest{Version: n.cfg.Version, NodeID: g.member.nodeID, ClusterID: c.ID, Taken: n.cfg.Now().UTC(), Index: x.Index, Term: x.Term,
		Members: x.Members, Objects: backup.Count(x.Snapshot)})
	if err != nil {
		return err
	}
	if err := x.Write(out.Put); err != nil {
		return err
	}
	n.cfg.Logger.Info("the cluster was backed up", "index", x.Index)
	return nil
}

// CheckBackup reads a whole backup as a recovery would and says what it is of. Errors name the offset of damage.
func CheckBackup(r io.Reader, secret backup.Secret) (*backup.Manifest, error) {
	m, _, err := readBackup(r, secret)
	return m, err
}

// readBackup reads a backup to its end: nothing of a damaged one is used.
func readBackup(r io.Reader, secret backup.Secret) (*backup.Manifest, *raftstore.Salvaged, error) {
	in, err := backup.NewReader(r, secret)
	if err != nil {
		return nil, nil, err
	}
	m := in.Manifest()
	s, err := raftstore.ReadExport(in.Next)
	if err != nil {
		if damage, ok := errors.AsType[*backup.DamageError](err); ok {
			return nil, nil, damage
		}
		return nil, nil, fmt.Errorf("read backup before offset %d: %w", in.Offset(), err)
	}
	snap := s.State.Snapshot()
	if c := snap.Cluster(); c == nil || c.ID != m.ClusterID || !maps.Equal(backup.Count(snap), m.Objects) {
		return nil, nil, errors.New("read backup: what is in it is not what it says it is")
	}
	return &m, s, nil
}

// restored is what a backup holds.
type restored struct {
	manifest *backup.Manifest
	salvaged *raftstore.Salvaged
}

// restore reads a backup to its end.
func restore(req backup.RecoverRequest, body io.Reader) (*restored, error) {
	secret, err := backup.ParseSecret(req.Secret)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	from := &restored{}
	if from.manifest, from.salvaged, err = readBackup(body, secret); err != nil {
		return nil, badRequest("%v", err)
	}
	return from, nil
}
