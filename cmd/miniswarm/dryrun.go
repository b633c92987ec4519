package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/spf13/cobra"
)

// planRequest is what a dry run asks the daemon: the body of POST /miniswarm/plan.
type planRequest struct {
	Networks []network.CreateRequest
	Secrets  []plannedPayload
	Configs  []plannedPayload
	Services []plannedService
	Remove   []string
}

// plannedPayload is a secret or config that would be made.
type plannedPayload struct{ ID, Name string }

// plannedService is a service that would be created, or updated if it has an id.
type plannedService struct {
	ID       string `json:",omitempty"`
	Rollback bool   `json:",omitempty"`
	Spec     swarm.ServiceSpec
}

const flagDryRun = "dry-run"

func dryRunFlag(cmd *cobra.Command) {
	cmd.Flags().Bool(flagDryRun, false, "Change nothing; show what would change, and where the tasks would go and why")
}

// startDryRun makes a command write nothing, if it is asked to.
func startDryRun(oc *observedCLI, cmd *cobra.Command) bool {
	dry, err := cmd.Flags().GetBool(flagDryRun)
	if err != nil || !dry {
		return false
	}
	oc.mute = true
	oc.observer().plan = &planRequest{}
	return true
}

// showPlan asks the daemon what would come of what a command would have written, and prints it.
func showPlan(ctx context.Context, oc *observedCLI) error {
	oc.mute = false
	obs := oc.observer()
	body, err := json.Marshal(obs.plan)
	if err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	answer, err := ask(ctx, obs.APIClient, "POST", "/miniswarm/plan", bytes.NewReader(body))
	if err != nil {
		return err
	}
	var plan struct{ Text string }
	if err := json.Unmarshal(answer, &plan); err != nil {
		return fmt.Errorf("plan: read the answer of the daemon: %w", err)
	}
	_, err = fmt.Fprintln(oc.Out(), strings.TrimRight(plan.Text, "\n"))
	return err
}
