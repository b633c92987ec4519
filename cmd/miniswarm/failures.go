package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
)

// failures tell, while a service is waited for, why its tasks end. Docker's progress says no more than that one has failed, and nothing
// where the next is on its way already.
type failures struct {
	service string    // its name
	since   time.Time // by the managers' clock: what failed earlier is not the doing of the command that waits
}

// newFailures gives the failures of a service from its last change on.
func newFailures(ctx context.Context, cl client.APIClient, id string) (*failures, error) {
	svc, _, err := cl.ServiceInspectWithRaw(ctx, id, swarm.ServiceInspectOptions{})
	if err != nil {
		return nil, err
	}
	return &failures{service: svc.Spec.Name, since: svc.UpdatedAt}, nil
}

// tell shows the newest error that a task has ended with.
func (f *failures) tell(tasks []swarm.Task, out *progressPrinter) {
	var last *swarm.Task
	for i := range tasks {
		t := &tasks[i]
		if ended(t.Status.State) && t.Status.Err != "" && !t.UpdatedAt.Before(f.since) && (last == nil || last.UpdatedAt.Before(t.UpdatedAt)) {
			last = t
		}
	}
	if last == nil {
		return
	}
	name := fmt.Sprintf("%s.%d", f.service, last.Slot)
	if last.Slot == 0 {
		name = f.service
	}
	if last.NodeID != "" {
		name += " on " + out.nodeName(last.NodeID)
	}
	out.failure(name, last.Status.Err)
}

// culprit finds the task that the state of an update names as its reason.
var culprit = regexp.MustCompile(`failure or early termination of task (\w+)`)

// because adds to a text about an update that has stopped what became of the task that it names.
func because(ctx context.Context, cl client.APIClient, text string) string {
	m := culprit.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	t, _, err := cl.TaskInspectWithRaw(ctx, m[1])
	switch {
	case err != nil: // it is history no more
		return text
	case t.Status.Err != "":
		return text + ": " + strings.TrimSpace(t.Status.Err)
	}
	return fmt.Sprintf("%s, which is %s", text, t.Status.State)
}

// explainStop completes the error of an update that has stopped.
func explainStop(ctx context.Context, cl client.APIClient, err error) error {
	if err == nil {
		return nil
	}
	if told := because(ctx, cl, err.Error()); told != err.Error() {
		return fmt.Errorf("%w%s", err, strings.TrimPrefix(told, err.Error()))
	}
	return err
}
