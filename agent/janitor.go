package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/miniswarm/miniswarm/agent/docker"
)

const (
	minTidy = time.Second
	maxTidy = 30 * time.Second
)

// janitor removes what carries this node's label and belongs to nothing: containers of tasks that are not assigned to
// this node any more, their files, and networks of the same kind.
type janitor struct {
	nodeID string
	engine docker.Engine
	// networks is nil where the data plane looks after the engine's networks.
	networks *docker.Networks
	// files is nil where tasks have none.
	files *docker.Files
	knows func() (tasks, networks map[string]bool, ok bool)
	log   *slog.Logger
	wake  chan struct{} // capacity 1
}

func (j *janitor) poke() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// run tidies whenever it is woken, and again after a failure, until ctx ends.
func (j *janitor) run(ctx context.Context) error {
	var again <-chan time.Time
	pause := minTidy
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-j.wake:
		case <-again:
		}
		again = nil
		err := j.tidy(ctx)
		if err == nil {
			pause = minTidy
			continue
		}
		if ctx.Err() == nil && !errors.Is(err, docker.ErrUnavailable) {
			j.log.Debug("left-overs could not be removed yet", "err", err)
		}
		again = time.After(pause)
		pause = min(2*pause, maxTidy)
	}
}

func (j *janitor) tidy(ctx context.Context) error {
	if _, _, ok := j.knows(); !ok {
		return nil
	}
	list, err := j.engine.List(ctx, docker.LabelNodeID, j.nodeID)
	if err != nil {
		return fmt.Errorf("list containers of this node: %w", err)
	}
	var withFiles []string
	if j.files != nil {
		if withFiles, err = j.files.Tasks(); err != nil {
			return err
		}
	}
	// Asked after the lists were made: what is made in between belongs to a task that is known by then.
	tasks, networks, _ := j.knows()
	var unknown []container.Summary
	for _, c := range list {
		if !tasks[c.Labels[docker.LabelTaskID]] {
			unknown = append(unknown, c)
		}
	}
	if err = dispose(ctx, j.engine, unknown, j.log); err == nil && j.files != nil {
		err = j.files.Remove(slices.DeleteFunc(withFiles, func(id string) bool { return tasks[id] })...)
	}
	if j.networks != nil {
		err = errors.Join(err, j.networks.Keep(ctx, func(id string) bool { return networks[id] }))
	}
	return err
}

// dispose stops containers with their own grace, all at once, and removes them.
func dispose(ctx context.Context, e docker.Engine, list []container.Summary, log *slog.Logger) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() {
			log.Info("removing a container whose task is not on this node any more", "container", c.ID, "task", c.Labels[docker.LabelTaskID])
			if err := e.Stop(ctx, c.ID, nil); err != nil && errors.Is(err, docker.ErrUnavailable) {
				errs[i] = err
				return
			}
			if err := e.Remove(ctx, c.ID); err != nil {
				errs[i] = fmt.Errorf("remove container %s: %w", c.ID, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
