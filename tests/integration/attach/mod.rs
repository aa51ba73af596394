//! `ambit attach`: containers that run already, made by engines with no option for ambit, show
//! their own bounds, and detach gives back what was there before.

mod alone;
mod attacked;
mod auto;
mod container;
mod dead;
mod equip;
mod leases;
mod many_leases;
mod nested;
mod page_cache;
mod rules;
mod steady;
