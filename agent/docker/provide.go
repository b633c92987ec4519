package docker

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/docker/docker/api/types/system"
)

// makeFiles makes the files of the task's secrets and configs, unless they are there. It waits for what the managers have
// not sent yet.
func (c *Controller) makeFiles(ctx context.Context) error {
	if len(payloadsOf(c.task.Spec.ContainerSpec)) == 0 || c.rt.Files.made(c.task.ID) {
		return nil
	}
	files, err := render(ctx, c.task, c.rt.Node(), c.rt.Payloads)
	if err != nil {
		return err
	}
	uid, gid, err := c.rt.root.ask(ctx, c.rt.Engine, c.rt.Watcher.Epoch())
	if err != nil {
		return err
	}
	for i := range files {
		files[i].UID += uid
		files[i].GID += gid
	}
	return c.rt.Files.make(c.task.ID, files)
}

// explainUnseen says what is wrong where the engine does not see the files that are there.
func (c *Controller) explainUnseen(err error) error {
	if err != nil && c.rt.Files != nil && strings.Contains(err.Error(), "does not exist: "+c.rt.Files.Dir()) && c.rt.Files.made(c.task.ID) {
		return fmt.Errorf("%w: the engine does not see what this daemon mounts; run the daemon in the engine's mount namespace", err)
	}
	return err
}

// Discard removes the files of a task of which nothing will be started any more. The container may be there still.
func (c *Controller) Discard() error {
	if len(payloadsOf(c.task.Spec.ContainerSpec)) == 0 {
		return nil
	}
	return c.rt.Files.remove(c.task.ID)
}

// rootIDs knows which user and group of the machine are root in containers: 0, unless the engine remaps users. An engine
// that was restarted is asked again.
type rootIDs struct {
	mu       sync.Mutex
	known    bool   // guarded by mu, like all below
	epoch    uint64 // of the watcher, when the engine was asked
	uid, gid int
}

func (r *rootIDs) ask(ctx context.Context, e Engine, epoch uint64) (uid, gid int, err error) {
	r.mu.Lock()
	uid, gid = r.uid, r.gid
	known := r.known && r.epoch == epoch
	r.mu.Unlock()
	if known {
		return uid, gid, nil
	}
	// Not under the lock: an engine that hangs must not keep others from being interrupted.
	info, err := e.Info(ctx)
	if err != nil {
		return 0, 0, err
	}
	uid, gid = remapped(info)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known, r.epoch, r.uid, r.gid = true, epoch, uid, gid
	return uid, gid, nil
}

// remapped reads the ids from the name of the directory that an engine with --userns-remap keeps its data in: UID.GID.
func remapped(info system.Info) (uid, gid int) {
	on := slices.ContainsFunc(info.SecurityOptions, func(o string) bool { return strings.HasPrefix(o, "name=userns") })
	if !on {
		return 0, 0
	}
	if n, err := fmt.Sscanf(filepath.Base(info.DockerRootDir), "%d.%d", &uid, &gid); n != 2 || err != nil {
		return 0, 0
	}
	return uid, gid
}
